"""What the tests share: two real databases, a platform on top of one, snapshots, and a recount of the invariants."""
