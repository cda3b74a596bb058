"""For those who await: any method of the services, in a thread or in an ``AsyncSession``'s transaction."""

from .service import call, on_loop, within

__all__ = ["call", "on_loop", "within"]
