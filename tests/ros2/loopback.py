"""Cyclone DDS on the loopback alone, in a domain of this test process, for tests of several processes."""

from __future__ import annotations

import os

CONFIGURATION = """<CycloneDDS><Domain><General><Interfaces><NetworkInterface name="lo" multicast="false"/>
</Interfaces><AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>
<MaxAutoParticipantIndex>40</MaxAutoParticipantIndex><Peers><Peer address="127.0.0.1"/></Peers></Discovery>
</Domain></CycloneDDS>"""


def environment() -> dict[str, str]:
    """Variables for this process and its children; other test runs on this machine use other domains."""
    return {"CYCLONEDDS_URI": CONFIGURATION, "ROS_DOMAIN_ID": str(1 + os.getpid() % 200)}
