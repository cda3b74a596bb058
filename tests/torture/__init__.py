"""Whether any fault loses, doubles or invents a point."""
