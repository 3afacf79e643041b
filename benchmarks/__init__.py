"""Side by side with peers: `make bench` measures both sides in one run."""
