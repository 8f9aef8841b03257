"""The repository polices itself: what these tests say is what a reviewer need not look for."""
