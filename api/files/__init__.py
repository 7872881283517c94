"""/v1/files: uploads, and results of batches. Contents are on disk, rows name them."""
