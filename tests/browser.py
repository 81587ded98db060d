"""Chromium without a window, driven by the W3C WebDriver protocol of chromedriver."""

import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def missing():
    """Why there is no browser to drive, or None."""
    names = "chromium", "chromedriver"
    gone = [name for name in names if shutil.which(name) is None]
    return f"no {' and no '.join(gone)} in PATH" if gone else None


class Browser:
    """One tab. Elements are named by CSS selectors; a method waits for its element."""

    def __init__(self, address):
        self._address = address

    def command(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise LookupError(json.load(error)["value"]["message"]) from None

    def open(self, url):
        self.command("POST", "/url", {"url": url})

    def devtools(self, name, **params):
        body = {"cmd": name, "params": params}
        return self.command("POST", "/goog/cdp/execute", body)

    def run(self, script, *arguments):
        body = {"script": script, "args": list(arguments)}
        return self.command("POST", "/execute/sync", body)

    def until(self, script, *arguments, seconds=10.0):
        """What a script returns as soon as that is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.02)
        return value

    def click(self, selector):
        self.command("POST", f"/element/{self._element(selector)}/click", {})

    def type(self, selector, keys):
        path = f"/element/{self._element(selector)}/value"
        self.command("POST", path, {"text": keys})

    def press(self, keys, held=()):
        """Presses keys in what has the focus, others held down."""
        actions = [{"type": "keyDown", "value": key} for key in held]
        for key in keys:
            actions += [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        actions += [{"type": "keyUp", "value": key} for key in held]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self.command("POST", "/actions", {"actions": [source]})

    def texts(self, selector):
        """The text of each element as it is seen, those hidden left out."""
        script = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((e) => e.checkVisibility()).map((e) => e.innerText)"
        )
        return self.run(script, selector)

    def text(self, selector):
        self._element(selector)
        return "\n".join(self.texts(selector))

    def complaints(self):
        """What the console was told since the last call."""
        entries = self.command("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def requested(self):
        """Every URL that was asked for since the last call."""
        entries = self.command("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, path):
        image = self.command("GET", "/screenshot")
        pathlib.Path(path).write_bytes(base64.b64decode(image))

    def _element(self, selector):
        visible = "return document.querySelector(arguments[0])?.checkVisibility()"
        self.until(visible, selector)
        body = {"using": "css selector", "value": selector}
        return self.command("POST", "/element", body)[_ELEMENT]


@contextlib.contextmanager
def driver():
    """The address of a chromedriver, ended afterwards."""
    process = subprocess.Popen(
        ["chromedriver", "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "successfully on port" in line:
                port = int(line.rstrip(".\n").split()[-1])
                break
        else:
            raise RuntimeError("chromedriver did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def browser(address):
    """A fresh browser of a driver, with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = {
            "binary": shutil.which("chromium"),
            "args": [*_ARGUMENTS, f"--user-data-dir={profile}"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        body = {"capabilities": {"alwaysMatch": wanted}}
        session = Browser(address).command("POST", "/session", body)["sessionId"]
        tab = Browser(f"{address}/session/{session}")
        tab.open("about:blank")  # Not the start page, which asks for much.
        try:
            yield tab
        finally:
            tab.command("DELETE", "")
