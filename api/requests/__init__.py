"""One request's way to the broker and back: built, admitted, charged, submitted, completed."""
