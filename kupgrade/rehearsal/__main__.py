"""For developers: `python -m kupgrade.rehearsal up|run|push|reset|down|exec`, a virtual host to try things in."""

from __future__ import annotations

import sys

from kupgrade.rehearsal.shell import main

sys.exit(main())
