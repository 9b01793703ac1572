"""Downloads: from public addresses only, bounded, resumable; against a local server that misbehaves in known ways."""

import contextlib
import http.server
import io
import json
import socket
import threading
import time

import pytest
from PIL import Image

from clip_vl.datasets.images.download import FAILURES, Refused, checked_address, fetch, fetch_all, is_public


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        answer = {
            "/good": (200, picture()), "/text": (200, b"<html>"), "/gone": (404, b""), "/large": (200, b"x" * 5000),
        }  # fmt: skip
        if self.path.startswith("/to/"):
            target = {
                "loop": "/to/loop",
                "good": "/good",
                "file": "file:///etc/passwd",
                "meta": "http://169.254.169.254/",
            }
            self.send_response(302)
            self.send_header("Location", target[self.path[4:]])
            self.end_headers()
            return
        if self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
            return
        status, body = answer.get(self.path, answer["/good"])
        self.send_response(status)
        size = 2 * len(body) if self.path == "/short" else len(body)
        if self.path != "/large":
            self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def local(address):
    return address == "127.0.0.1"


HERE = {"allowed": local, "ports": None}


def test_an_image_comes_also_through_a_redirection(server):
    assert fetch(f"{server}/good", **HERE) == fetch(f"{server}/to/good", **HERE) == picture()


@pytest.mark.parametrize(
    "path, why",
    [("/gone", "answers 404"), ("/to/loop", "redirections"), ("/to/file", "only http"), ("/to/meta", "public internet"),
     ("/large", "more than 2,000 bytes"), ("/short", "cut short|no answer"), ("/drip", "")],
)  # fmt: skip
def test_what_is_wrong_is_said(server, path, why):
    began = time.monotonic()
    if path == "/drip":  # a byte now and then, and no length that says how many: the deadline ends it
        with pytest.raises(Refused, match="within the time limit"):
            fetch(server + path, deadline=0.3, **HERE)
    else:
        with pytest.raises(Refused, match=why):
            fetch(server + path, max_bytes=2000, **HERE)
    assert time.monotonic() - began < 3


def test_the_deadline_holds_while_a_name_is_looked_up(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [answered.wait(60)][1:])
    start = time.monotonic()
    with pytest.raises(Refused, match="no answer within the time limit"):
        fetch("http://example.org/a.jpg", deadline=0.2)
    answered.set()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x03\x40\x00"])
def test_the_deadline_holds_in_a_tls_handshake(sent):
    """A server that accepts, and then never finishes the handshake: silent, or a byte of a record now and then."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            connection, _ = listening.accept()
            with contextlib.suppress(OSError), connection:
                connection.sendall(sent)
                for _ in range(100):
                    time.sleep(0.05)
                    connection.sendall(b"\x00" if sent else b"")

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(Refused, match="no answer"):
            fetch(f"https://127.0.0.1:{listening.getsockname()[1]}/a.jpg", deadline=0.3, **HERE)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a", "http://localhost/a", "http://10.0.0.1/", "http://192.168.1.1/", "http://169.254.169.254/",
     "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[fe80::1]/", "http://0.0.0.0/", "http://2130706433/",
     "http://0x7f.1/", "http://100.64.0.1/", "http://224.0.0.1/", "file:///etc/passwd", "ftp://93.184.216.34/",
     "http://user:pw@93.184.216.34/", "http://93.184.216.34:22/", "http://93.184.216.34:99999/", "http://", "", "x",
     "gopher://93.184.216.34/", "http://93.184.216.34/a b", "http://93.184.216.34/\r\nHost: x", "http://[::1",
     "http://[2002:7f00:1::]/", "http://[64:ff9b::a00:1]/", "http://[64:ff9b::169.254.169.254]/",
     "http://[64:ff9b:1::5db8:d822]/", "http://[fec0::1]/", "http://[feff::1]/", "http://[::10.0.0.1]/",
     "http://[::192.168.1.1]/", "http://[::ffff:0:10.0.0.1]/", "http://[::ffff:a9fe:a9fe]/", "http://[::]/",
     "http://[2002:c0a8:101::1]/", "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "http://[fc00::1]/",
     "http://[2606:4700::5efe:10.0.0.1]/", "http://[2606:4700::200:5efe:10.0.0.1]/", "http://240.0.0.1/",
     "http://no-such-host.invalid/"],
)  # fmt: skip
def test_hostile_addresses_are_refused(url):
    with pytest.raises(Refused):
        checked_address(url)


def test_a_public_address_is_connected_to_as_checked():
    assert is_public("64:ff9b::93.184.216.34") and is_public("::ffff:93.184.216.34")  # of a network without IPv4
    assert is_public("93.184.216.34") and not is_public("127.0.0.1") and is_public("2606:4700::1111")
    checked = checked_address("https://93.184.216.34/a%20b?c=d")
    assert checked == ("https", "93.184.216.34", 443, "93.184.216.34", "/a%20b?c=d")


def test_fetching_goes_on_where_it_stopped_and_lists_failures(server, tmp_path):
    wanted = {"1": f"{server}/good", "2": f"{server}/gone", "3": f"{server}/text", "4": f"{server}/good4"}
    stops = iter([False, False, False, True])
    fetch_all(wanted, tmp_path, stop=lambda: next(stops), say=lambda _: None, pause=0, **HERE)
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["1.jpg"]
    Handler.asked.clear()
    there, failures = fetch_all(wanted, tmp_path, say=lambda _: None, pause=0, **HERE)
    assert Handler.asked == ["/good4"] and there == 2 and set(failures) == {"2", "3"}
    lines = [json.loads(line) for line in (tmp_path / FAILURES).read_text().splitlines()]
    assert (lines[0]["image"], lines[0]["why"]) == ("2", "the server answers 404")
    assert "not an image" in lines[1]["why"] and len(lines) == 2


def test_a_host_is_left_a_pause(server, tmp_path):
    began = time.monotonic()
    fetch_all({str(n): f"{server}/good" for n in range(3)}, tmp_path, say=lambda _: None, pause=0.2, **HERE)
    assert time.monotonic() - began > 0.4
