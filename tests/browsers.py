"""The browser of the console's tests: found, or installed where that is possible.

python tests/browsers.py            # prints its path; or why there is none, and how to install it
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

INSTALL = "apt-get install chromium, or: python -m playwright install chromium"
"""How a person installs one."""

_SECONDS = 300


def find_browser() -> str | None:
    """The path of a Chromium: $STREAMVOS_CHROMIUM, of the system, or one that playwright has installed."""
    given = os.environ.get("STREAMVOS_CHROMIUM")
    if given:
        return given
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    return found or _of_playwright()


def install_browser() -> None:
    """Install one: Debian's, if we are root on such a system, else playwright's own for this user."""
    commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = ["apt-get", "-qq", "-y", "-o", "Acquire::Retries=1"]
        commands = [[*quiet, "update"], [*quiet, "install", "--no-install-recommends", "chromium"]]
    for command in commands:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"cannot install a browser: {error}", file=sys.stderr)
            return


def _of_playwright() -> str | None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def main() -> None:
    """Find or install one. Without one, the tests that need it skip: this is no failure."""
    if find_browser() is None:
        install_browser()
    found = find_browser()
    print(found or f"no browser: tests of the console's page will be skipped. To have one: {INSTALL}")


if __name__ == "__main__":
    main()
