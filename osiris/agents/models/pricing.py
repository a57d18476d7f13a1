"""Prices of tokens and sizes of context windows, from the data of `genai-prices`.

A model that is not in it has an unknown price, not a price of zero.
"""

from functools import cache

from genai_prices import Usage as Priced
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot

from osiris.core.work import Usage


def price_usage(vendor: str, model: str, url: str, usage: Usage, written: int = 0) -> Usage:
    """Return `usage` with its price in US dollars.

    `written` is the number of input tokens written to the vendor's cache.
    """
    counted = Priced(
        input_tokens=usage.input,
        cache_read_tokens=usage.cached,
        cache_write_tokens=written,
        output_tokens=usage.output,
    )
    try:
        if vendor:
            price = calc_price(counted, model, provider_id=vendor)
        else:
            price = calc_price(counted, model, provider_api_url=url)
    except (LookupError, ValueError):  # not in the list, or impossible counts
        return Usage(input=usage.input, cached=usage.cached, output=usage.output, usd=None)
    return Usage(
        input=usage.input, cached=usage.cached, output=usage.output, usd=float(price.total_price)
    )


@cache
def find_context_window(vendor: str, model: str, url: str) -> int | None:
    """Return a model's context window in tokens; None when it is not in the list."""
    try:
        _provider, found = get_snapshot().find_provider_model(
            model, None, vendor or None, None if vendor else url
        )
    except LookupError:
        return None
    return found.context_window
