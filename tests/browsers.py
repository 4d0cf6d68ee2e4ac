"""Whether this machine has a browser for the tests that need one."""

import pytest

from looped_lib.report.browser import NoBrowser, find_browser


def installed() -> bool:
    try:
        return bool(find_browser())
    except NoBrowser:
        return False


needs_browser = pytest.mark.skipif(not installed(), reason="no Chromium: apt-get install chromium")
