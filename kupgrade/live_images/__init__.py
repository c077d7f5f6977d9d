"""Images of workloads that run on: dumped on this host, restored in a copy of it (`rehearse --live-images`)."""
