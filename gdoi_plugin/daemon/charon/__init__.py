"""strongSwan's IKE daemon beside ours: a client of charon's control socket, and what uses it."""
