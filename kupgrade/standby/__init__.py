"""What runs in a spawned kernel until workloads do."""
