"""The cart: the articles that a customer is about to buy."""


class Cart:
    """Lines of name, price in cents and quantity."""

    def __init__(self):
        self._lines = {}

    def add(self, name, price, quantity=1):
        """Put `quantity` pieces of an article into the cart."""
        self._lines[name] = (price, quantity)

    def quantity(self, name):
        """Return the number of pieces of an article in the cart."""
        return self._lines.get(name, (0, 0))[1]

    def total(self):
        """The sum of all lines, in cents."""
        return sum(price * quantity for price, quantity in self._lines.values())
