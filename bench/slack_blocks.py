"""
Slack's rules for Block Kit, as far as a notifier uses it: which blocks a message or a modal may hold.

The rules and limits are those of the Block Kit reference (docs.slack.dev/reference/block-kit); problems are worded as Slack words them,
with a JSON pointer. Its one rule: stricter than Slack is a fault of the stand-in, and laxer too, so what is not checked is not listed.
Not modelled: the inside of rich_text, video, file, table and markdown blocks, and interactive elements other than those in
_ELEMENTS.
"""

from collections.abc import Callable, Mapping
from typing import Any

MESSAGE_BLOCKS_MAX = 50
VIEW_BLOCKS_MAX = 100
# Cumulative text of a message's blocks beyond which Slack answered msg_blocks_too_long; see slackapi/bolt-js#2867.
MESSAGE_BLOCK_TEXT_MAX = 13_200

Problems = list[str]


def block_problems(blocks: Any, *, maximum: int = MESSAGE_BLOCKS_MAX, at: str = "/blocks") -> Problems:
    """
    What Slack would say against a list of blocks.

    Args:
        blocks: As decoded from JSON.
        maximum: How many there may be.
        at: JSON pointer of the list.

    Returns:
        Problems in Slack's words; none if it would accept.
    """
    if not isinstance(blocks, list):
        return [f"must be an array [json-pointer:{at}]"]
    problems: Problems = []
    if len(blocks) > maximum:
        problems.append(f"no more than {maximum} items allowed [json-pointer:{at}]")
    seen: set[str] = set()
    for i, block in enumerate(blocks):
        here = f"{at}/{i}"
        if not isinstance(block, Mapping):
            problems.append(f"must be an object [json-pointer:{here}]")
            continue
        check = _BLOCKS.get(str(block.get("type")))
        if check is None:
            problems.append(f"unsupported type: {block.get('type')} [json-pointer:{here}/type]")
            continue
        check(block, here, problems)
        _string(block, "block_id", here, problems, maximum=255, required=False)
        block_id = block.get("block_id")
        if isinstance(block_id, str):
            if block_id in seen:
                problems.append(f"`block_id` already exists: {block_id} [json-pointer:{here}/block_id]")
            seen.add(block_id)
    return problems


def view_problems(view: Any) -> Problems:
    """What Slack would say against the `view` of `views.open`."""
    if not isinstance(view, Mapping):
        return ["must be an object [json-pointer:/view]"]
    problems: Problems = []
    if view.get("type") != "modal":
        problems.append("must be one of: modal [json-pointer:/view/type]")
    known = {"type", "title", "blocks", "close", "submit", "private_metadata", "callback_id", "clear_on_close", "notify_on_close"}
    _only(view, known | {"external_id", "submit_disabled"}, "/view", problems)
    for name, required in (("title", True), ("submit", False), ("close", False)):
        _text(view, name, "/view", problems, maximum=24, plain=True, required=required)
    _string(view, "private_metadata", "/view", problems, maximum=3000, required=False, minimum=0)
    _string(view, "callback_id", "/view", problems, maximum=255, required=False)
    problems += block_problems(view.get("blocks"), maximum=VIEW_BLOCKS_MAX, at="/view/blocks")
    blocks = view.get("blocks")
    if (
        isinstance(blocks, list)
        and any(isinstance(b, Mapping) and b.get("type") == "input" for b in blocks)
        and "submit" not in view
    ):
        problems.append("`submit` is required when an `input` is in the `blocks` array [json-pointer:/view]")
    return problems


def text_length(value: Any) -> int:
    """Characters of all texts in a tree of blocks."""
    if isinstance(value, Mapping):
        return sum(len(v) if k == "text" and isinstance(v, str) else text_length(v) for k, v in value.items())
    return sum(text_length(v) for v in value) if isinstance(value, list) else 0


def _section(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(block, {"type", "block_id", "text", "fields", "accessory", "expand"}, at, problems)
    fields = block.get("fields")
    if "text" not in block and not fields:
        problems.append(f"missing required field: text or fields [json-pointer:{at}]")
    _text(block, "text", at, problems, maximum=3000, required=False)
    if fields is not None:
        for i in _items(block, "fields", at, problems, maximum=10):
            _text_object(fields[i], f"{at}/fields/{i}", problems, maximum=2000)
    if "accessory" in block:
        _element(block["accessory"], f"{at}/accessory", problems, {*_ELEMENTS, "image"})


def _header(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(block, {"type", "block_id", "text"}, at, problems)
    _text(block, "text", at, problems, maximum=150, plain=True)


def _divider(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(block, {"type", "block_id"}, at, problems)


def _context(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(block, {"type", "block_id", "elements"}, at, problems)
    for i in _items(block, "elements", at, problems, maximum=10):
        item, here = block["elements"][i], f"{at}/elements/{i}"
        if isinstance(item, Mapping) and item.get("type") == "image":
            _image_element(item, here, problems)
        else:
            _text_object(item, here, problems, maximum=3000)


def _actions(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(block, {"type", "block_id", "elements"}, at, problems)
    seen: set[Any] = set()
    for i in _items(block, "elements", at, problems, maximum=25):
        item, here = block["elements"][i], f"{at}/elements/{i}"
        _element(item, here, problems, set(_ELEMENTS))
        action_id = item.get("action_id") if isinstance(item, Mapping) else None
        if action_id is not None and action_id in seen:
            problems.append(f"`action_id` {action_id} already exists [json-pointer:{here}/action_id]")
        seen.add(action_id)


def _image(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(block, {"type", "block_id", "image_url", "slack_file", "alt_text", "title"}, at, problems)
    _string(block, "alt_text", at, problems, maximum=2000)
    _string(block, "image_url", at, problems, maximum=3000, required="slack_file" not in block)
    _text(block, "title", at, problems, maximum=2000, plain=True, required=False)


def _input(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(block, {"type", "block_id", "label", "element", "dispatch_action", "hint", "optional"}, at, problems)
    _text(block, "label", at, problems, maximum=2000, plain=True)
    _text(block, "hint", at, problems, maximum=2000, plain=True, required=False)
    _element(block.get("element"), f"{at}/element", problems, {*_ELEMENTS, "plain_text_input"} - {"button"})


def _unchecked(block: Mapping[str, Any], at: str, problems: Problems) -> None:
    """A block that Slack knows and we do not look into."""


_BLOCKS: dict[str, Callable[[Mapping[str, Any], str, Problems], None]] = {
    "section": _section,
    "header": _header,
    "divider": _divider,
    "context": _context,
    "actions": _actions,
    "image": _image,
    "input": _input,
    **dict.fromkeys(("rich_text", "markdown", "video", "file", "table", "context_actions"), _unchecked),
}


def _button(item: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(item, {"type", "text", "action_id", "url", "value", "style", "confirm", "accessibility_label"}, at, problems)
    _text(item, "text", at, problems, maximum=75, plain=True)
    _string(item, "value", at, problems, maximum=2000, required=False)
    _string(item, "url", at, problems, maximum=3000, required=False)
    _string(item, "accessibility_label", at, problems, maximum=75, required=False)
    if item.get("style", "primary") not in ("primary", "danger"):
        problems.append(f"must be one of: primary, danger [json-pointer:{at}/style]")
    if "confirm" in item:
        _confirm(item["confirm"], f"{at}/confirm", problems)


def _plain_text_input(item: Mapping[str, Any], at: str, problems: Problems) -> None:
    known = {"type", "action_id", "initial_value", "multiline", "min_length", "max_length", "placeholder", "focus_on_load"}
    _only(item, known | {"dispatch_action_config"}, at, problems)
    _text(item, "placeholder", at, problems, maximum=150, plain=True, required=False)


def _unchecked_element(item: Mapping[str, Any], at: str, problems: Problems) -> None:
    """A select, picker or menu: only its action_id is looked at."""


_ELEMENTS: dict[str, Callable[[Mapping[str, Any], str, Problems], None]] = {
    "button": _button,
    **dict.fromkeys(
        ("static_select", "users_select", "overflow", "checkboxes", "radio_buttons", "datepicker", "timepicker"),
        _unchecked_element,
    ),
}


def _element(item: Any, at: str, problems: Problems, allowed: set[str]) -> None:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in allowed:
        problems.append(f"unsupported type: {kind} [json-pointer:{at}/type]")
    elif kind == "image":
        _image_element(item, at, problems)
    else:
        _string(item, "action_id", at, problems, maximum=255, required=False)
        {**_ELEMENTS, "plain_text_input": _plain_text_input}[str(kind)](item, at, problems)


def _image_element(item: Mapping[str, Any], at: str, problems: Problems) -> None:
    _only(item, {"type", "image_url", "slack_file", "alt_text"}, at, problems)
    _string(item, "alt_text", at, problems, maximum=2000)


def _confirm(item: Any, at: str, problems: Problems) -> None:
    if not isinstance(item, Mapping):
        problems.append(f"must be an object [json-pointer:{at}]")
        return
    _only(item, {"title", "text", "confirm", "deny", "style"}, at, problems)
    _text(item, "title", at, problems, maximum=100, plain=True, required=False)
    _text(item, "text", at, problems, maximum=300)
    _text(item, "confirm", at, problems, maximum=30, plain=True, required=False)
    _text(item, "deny", at, problems, maximum=30, plain=True, required=False)


def _text(
    holder: Mapping[str, Any], name: str, at: str, problems: Problems, *, maximum: int, plain: bool = False, required: bool = True
) -> None:
    if name in holder:
        _text_object(holder[name], f"{at}/{name}", problems, maximum=maximum, plain=plain)
    elif required:
        problems.append(f"missing required field: {name} [json-pointer:{at}]")


def _text_object(value: Any, at: str, problems: Problems, *, maximum: int, plain: bool = False) -> None:
    if not isinstance(value, Mapping):
        problems.append(f"must be an object [json-pointer:{at}]")
        return
    kind = value.get("type")
    allowed = ("plain_text",) if plain else ("plain_text", "mrkdwn")
    if kind not in allowed:
        problems.append(f"must be one of: {', '.join(allowed)} [json-pointer:{at}/type]")
    _only(value, {"type", "text", "emoji"} if kind == "plain_text" else {"type", "text", "verbatim"}, at, problems)
    _string(value, "text", at, problems, maximum=maximum)


def _string(
    holder: Mapping[str, Any], name: str, at: str, problems: Problems, *, maximum: int, minimum: int = 1, required: bool = True
) -> None:
    value = holder.get(name)
    if value is None:
        if required:
            problems.append(f"missing required field: {name} [json-pointer:{at}]")
    elif not isinstance(value, str):
        problems.append(f"must be a string [json-pointer:{at}/{name}]")
    elif len(value) > maximum:
        problems.append(f"must be less than {maximum + 1} characters [json-pointer:{at}/{name}]")
    elif len(value) < minimum:
        problems.append(f"must be more than {minimum - 1} characters [json-pointer:{at}/{name}]")


def _items(holder: Mapping[str, Any], name: str, at: str, problems: Problems, *, maximum: int) -> range:
    value = holder.get(name)
    if not isinstance(value, list):
        problems.append(f"missing required field: {name} [json-pointer:{at}]")
        return range(0)
    if not value:
        problems.append(f"must have at least 1 item [json-pointer:{at}/{name}]")
    if len(value) > maximum:
        problems.append(f"no more than {maximum} items allowed [json-pointer:{at}/{name}]")
    return range(min(len(value), maximum))


def _only(value: Mapping[str, Any], known: set[str], at: str, problems: Problems) -> None:
    problems += [f"invalid additional property: {name} [json-pointer:{at}]" for name in value if name not in known]
