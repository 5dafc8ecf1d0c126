"""router.yaml: the documented example, and every contradiction at its place."""

from typing import Any

import pytest

from router.config import RouterConfig, split_listen
from specfile import SpecError, parse_text

GOOD = """\
apiVersion: penstock/v1
kind: Router
providers:
  - {name: p, base_url: "http://h/v1"}
models:
  - {name: a, provider: p}
  - {name: b, provider: p}
routes:
  - name: chat
    match: {model: [chat]}
    default: a
"""


def test_a_small_file_is_enough_and_the_rest_has_defaults() -> None:
    config = parse_text(RouterConfig, GOOD)
    assert (config.listen, config.environment, config.flags) == ("127.0.0.1:8421", "production", None)
    assert RouterConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{name: b, provider: p}", "{name: b, provider: q}", "7:25: models.1.provider: unknown provider 'q' (known: p)"),
        ("{name: b, provider: p}", "{name: a, provider: p}", "7:12: models.1.name: 'a' is already the name of models.0"),
        ("default: a", "default: c", "11:14: routes.0.default: unknown model 'c' (known: a, b)"),
        ("default: a", "default: a\n    fallbacks: [b, c]", "12:20: routes.0.fallbacks.1: unknown model 'c' (known: a, b)"),
        ("[chat]", "[chat, chat]", "10:27: routes.0.match.model.1: 'chat' is already matched by route 'chat'"),
        ("kind: Router", "kind: Router\nlisten: 8421", "3:9: listen: 8421 should be a valid string"),
        ("kind: Router", "kind: Router\nlisten: ':70000'", "3:9: listen: ':70000' is not an address to listen on"),
        ("kind: Router", "kind: Router\nlisen: 127.0.0.1:1", "3:1: lisen: unknown key (did you mean 'listen'?)"),
        ("kind: Router", "kind: Rooter", "2:7: kind: 'Rooter' should be 'Router'"),
        ("http://h/v1", "h/v1", "4:25: providers.0.base_url: 'h/v1' is not an address (write https://host/v1)"),
        (
            "{name: a, provider: p}",
            "{name: a, provider: p, timeout: {request: 30 parsecs}}",
            "6:47: models.0.timeout.request: '30 parsecs' is not a duration (write 30s, 15m, 2h)",
        ),
        (
            "{name: a, provider: p}",
            "{name: a, provider: p, price: {input_per_mtok: 1 EUR, output_per_mtok: 1 USD}}",
            "6:52: models.0.price.input_per_mtok: '1 EUR' is not in USD; costs are counted in USD only",
        ),
        (
            "kind: Router",
            "kind: Router\nbudgets: [{environment: production, per_day: 5 USD}]",
            "3:11: budgets.0: on_exceed: downgrade needs downgrade_to",
        ),
        (
            "kind: Router",
            "kind: Router\nredact: {custom: {badge: 'E-(\\d+'}}",
            "3:26: redact.custom.badge: 'E-(\\\\d+' is not a regular expression",
        ),
        ("kind: Router", "kind: Router\nflags: {source: 'ftp://x'}", "3:17: flags.source: 'ftp://x' is not an address"),
    ],
)
def test_says_what_is_wrong_and_where(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as refused:
        parse_text(RouterConfig, GOOD.replace(old, new, 1), "router.yaml")
    assert f"router.yaml:{problem}" in str(refused.value)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(("text", "parts"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:8421", ("::1", 8421))])
def test_reads_addresses_to_listen_on(text: str, parts: Any) -> None:
    assert split_listen(text) == parts
