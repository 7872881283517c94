"""People whom somebody else knows: an LDAP directory, or an OpenID provider."""
