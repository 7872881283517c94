"""One request on its way to the broker and back: built, admitted, charged, submitted, completed."""
