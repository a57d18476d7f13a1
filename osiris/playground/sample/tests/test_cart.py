import unittest

from shop.cart import Cart


class CartTest(unittest.TestCase):
    def test_an_empty_cart_costs_nothing(self):
        self.assertEqual(Cart().total(), 0)

    def test_two_articles_cost_the_sum_of_both(self):
        cart = Cart()
        cart.add("pen", 120)
        cart.add("ink", 450, quantity=2)
        self.assertEqual(cart.total(), 1020)


if __name__ == "__main__":
    unittest.main()
