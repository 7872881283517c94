"""The release. The change log, the Helm chart and the front end's package name it, too."""

VERSION = "0.1.0"
