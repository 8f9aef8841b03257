"""``cluster top``: ``state`` is what is seen of what is known and is pure, ``feed`` finds out, ``screen`` draws."""
