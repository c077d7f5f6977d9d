"""The lab: builds a virtual host, runs a whole upgrade in it, injects faults, judges and reports."""
