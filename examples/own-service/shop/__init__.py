"""A shop whose prices need exchange rates."""
