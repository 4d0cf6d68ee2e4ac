"""The browser that draws figures as files and prints pages: any Chrome or Chromium of the machine."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (  # root may not use the sandbox; the rest keeps it from the network
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


class NoBrowser(RuntimeError):
    """There is no Chrome or Chromium, or it does not start. The message says what to do."""


def find_browser() -> str:
    """The program BROWSER_PATH names, or else the first of NAMES that is installed. NoBrowser if there is none."""
    asked = os.environ.get("BROWSER_PATH")
    found = next(filter(None, map(shutil.which, [asked] if asked else NAMES)), None)
    if found is None:
        why = f"BROWSER_PATH is {asked}, which is no program" if asked else f"none of {', '.join(NAMES)} is installed"
        raise NoBrowser(f"figures as files and PDF need Chrome or Chromium, but {why}: install one, or set BROWSER_PATH to it")
    return found
