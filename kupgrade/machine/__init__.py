"""The real machine behind the ports of kupgrade/steps/ports.py: thin compositions of kernel/ and host/."""
