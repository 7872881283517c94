"""The release. The change log, the Helm chart and the front end's package name it, too."""

VERSION = "0.1.0"

STATE = 1
"""The layout of CANOPY_HOME: one more when the former release could not use it any longer."""
