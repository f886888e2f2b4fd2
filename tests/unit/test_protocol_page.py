"""docs/protocol.md says what the code does: its generated parts are up to date."""

from tests.protocol import PAGE, written


def test_the_page_of_the_protocol_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run scripts/protocol and commit docs/protocol.md"
