"""What a job and an idle tree cost, against the tree's depth and its number of nodes."""
