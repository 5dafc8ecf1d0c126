"""
Presidio's recognisers behind the redaction that is built in: for kinds of numbers that the built-in patterns do not know.

    recognisers(countries, score)(text)  ->  text with ``[iban_code]``, ``[us_ssn]``, ...

Only what works by patterns and check digits is used: no language model is loaded, and nothing is fetched. Its one rule: it comes
after the built-in patterns and adds to them, so that a router with it never lets through what one without it takes out.
"""

from collections.abc import Callable
from functools import lru_cache

NOISY = frozenset({"URL", "UUID", "DATE_TIME"})
"""Addresses, ids and times are what log lines consist of."""


@lru_cache(maxsize=4)
def recognisers(countries: tuple[str, ...], score: float) -> Callable[[str], str]:
    """
    Args:
        countries: Whose numbers are looked for beside the general kinds, as ISO 3166-1 codes of two letters in lower case.
        score: What Presidio has to be sure of, 0..1.

    Raises:
        ValueError: Presidio is not installed, or knows nothing of a country.
    """
    try:
        import tldextract.tldextract
        from presidio_analyzer import LocalRecognizer, PatternRecognizer, RecognizerRegistry
        from presidio_analyzer.predefined_recognizers import PhoneRecognizer
    except ImportError as exc:
        raise ValueError(f"redact.engine: presidio is not installed ({exc}); pip install 'penstock[presidio]'") from exc
    # By default it would fetch the list of public suffixes at the first e-mail address; the one that it brings along will do.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"], countries=list(countries))
    chosen: list[LocalRecognizer] = [one for one in registry.recognizers if isinstance(one, PatternRecognizer | PhoneRecognizer)]
    chosen = [one for one in chosen if not NOISY & set(one.supported_entities)]
    found = {code for one in chosen if (code := one.country_code())}
    if unknown := sorted(set(countries) - found):
        raise ValueError(f"redact.countries: presidio knows nothing of {', '.join(unknown)}")

    def redact(text: str) -> str:
        spans = [
            (result.start, result.end, result.entity_type.lower())
            for one in chosen
            for result in one.analyze(text, one.supported_entities, None) or ()
            if result.score >= score
        ]
        parts, at = [], 0
        for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
            if start < at:
                # Of two that overlap the tail of the second goes as well.
                at = max(at, end)
                continue
            parts += [text[at:start], f"[{kind}]"]
            at = end
        return "".join([*parts, text[at:]])

    return redact
