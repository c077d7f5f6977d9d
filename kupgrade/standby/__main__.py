"""`python3 -m kupgrade.standby`: the agent, as the standby initramfs starts it."""

from __future__ import annotations

import sys

from kupgrade.standby.agent import main

sys.exit(main())
