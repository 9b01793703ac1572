"""Download images by URL: those of SVO-Probes are at 14,102 addresses of other hosts.

Only http and https on their usual ports are fetched, only from hosts all of whose addresses are public; the connection
goes to the address that was checked, and redirections are checked as well. Sizes and times are bounded, the content
must be an image, requests go out one at a time with a pause per host. Existing files are kept.
"""

import contextlib
import http.client
import ipaddress
import json
import queue
import socket
import ssl
import threading
import time
import urllib.parse
from pathlib import Path

from clip_vl.datasets.images.decoding import DamagedImage, decode_image
from clip_vl.engine.files import atomic_write
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.engine.readers.text import read_lines

AGENT = "clip_vl image fetcher"
MAX_BYTES = 20 * 2**20
TIMEOUT = 10.0  # seconds without a byte
DEADLINE = 30.0  # seconds for a whole image
PAUSE = 0.5  # seconds between two requests to a host
REDIRECTIONS = 3
PORTS = {"http": 80, "https": 443}
FAILURES = "failures.jsonl"
# IPv4-mapped, IPv4-translated (RFC 2765), IPv4-compatible, NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
CARRIERS = [ipaddress.ip_network(net) for net in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96")]
NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215: a network's own translation
ISATAP = (0x00005EFE, 0x02005EFE)  # the interface's upper 32 bits (RFC 5214)


class Refused(Exception):
    """An image that is not fetched, with the reason."""


def is_public(address):
    """Whether an IP address is public: not of this machine, a local network, or reserved for a special use.

    An IPv6 address that embeds an IPv4 one (NAT64, 6to4, Teredo, mapped ...) is public where both are.
    """
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if any(ip in network for network in CARRIERS):
            return _is_open(last)
        carried = [ip.sixtofour, *(ip.teredo or ()), last if (int(ip) >> 32) & 0xFFFFFFFF in ISATAP else None]
        if ip.is_site_local or ip in NAT64_LOCAL or not all(_is_open(part) for part in carried if part):
            return False
    return _is_open(ip)


def _is_open(ip):
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _addresses(host, port, seconds):
    """The IP addresses of a host. Raises OSError, also at the time limit: the system's resolver has none of its own."""
    found = queue.SimpleQueue()

    def resolve():
        try:
            found.put(sorted({info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        answer = found.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("no answer within the time limit") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def checked_address(url, allowed=is_public, ports=PORTS, seconds=TIMEOUT):
    """(scheme, host, port, IP address to connect to, path and query) of a URL. Raises Refused.

    seconds: time limit of the look-up of the host
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Refused(f"no valid address: {error}") from None
    if parts.scheme not in PORTS or not host:
        raise Refused("only http and https addresses are fetched")
    if parts.username is not None or parts.password is not None:
        raise Refused("the address contains a user name")
    if not url.isascii() or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise Refused("the address contains spaces, symbols or letters that must be quoted")
    port = port or PORTS[parts.scheme]
    if ports and port not in ports.values():
        raise Refused(f"port {port} is not fetched from")
    try:
        found = _addresses(host, port, seconds)
    except (OSError, UnicodeError) as error:
        raise Refused(f"the host {host} is not found ({error})") from None
    if not found or not all(allowed(address) for address in found):
        raise Refused(f"the host {host} is not on the public internet")
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return parts.scheme, host, port, found[0], path


def fetch(url, allowed=is_public, ports=PORTS, max_bytes=MAX_BYTES, deadline=DEADLINE):
    """The bytes at a URL. Raises Refused.

    allowed, ports: for tests, whose server is on this machine
    """
    end = time.monotonic() + deadline
    for _ in range(REDIRECTIONS + 1):
        checked = checked_address(url, allowed, ports, min(TIMEOUT, max(end - time.monotonic(), 0.1)))
        try:
            data, location = _request(checked, max_bytes, end)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(f"no answer: {type(error).__name__}: {error}") from None
        if location is None:
            return data
        url = urllib.parse.urljoin(url, location)
    raise Refused(f"more than {REDIRECTIONS} redirections")


def _request(checked, max_bytes, end):
    """(body, None) of one request, or (None, the new location)."""
    scheme, host, port, address, path = checked
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    left = max(end - time.monotonic(), 0.1)
    sock = socket.create_connection((address, port), timeout=min(TIMEOUT, left))
    alarm = None
    try:
        if scheme == "https":  # the wrapped socket owns the descriptor: the alarm must have it
            context = ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        left = max(end - time.monotonic(), 0.1)
        alarm = threading.Timer(left, _hang_up, (sock,))  # a server that sends single bytes never times out
        alarm.start()
        if scheme == "https":
            sock.do_handshake()
        connection.sock = sock
        connection.request("GET", path, headers={"User-Agent": AGENT, "Accept": "image/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return None, response.getheader("Location") or ""
        if response.status != 200:
            raise Refused(f"the server answers {response.status}")
        body = _body(response, max_bytes)
        if time.monotonic() >= end:  # ended by the alarm; without a length it would count as whole
            raise Refused("not received within the time limit")
        return body, None
    finally:
        if alarm:
            alarm.cancel()
        sock.close()
        connection.close()


def _hang_up(sock):
    """Close a socket, so that a handshake or a read that waits for it ends."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the plain socket: TLS would first send a close message


def _body(response, max_bytes):
    length = response.getheader("Content-Length")
    if length and length.isdigit() and int(length) > max_bytes:
        raise Refused(f"{int(length):,} bytes, more than {max_bytes:,}")
    parts, size = [], 0
    while part := response.read1(65536):
        size += len(part)
        if size > max_bytes:
            raise Refused(f"more than {max_bytes:,} bytes")
        parts.append(part)
    if length and length.isdigit() and size < int(length):
        raise Refused(f"cut short: {size:,} of {length} bytes")
    return b"".join(parts)


def fetch_all(addresses, folder, stop=lambda: False, say=print, pause=PAUSE, **how):
    """Fetch {name: URL} as <folder>/<name>.jpg; returns (number of images in the folder, {name: reason}).

    A repeat continues: existing images and earlier failures (failures.jsonl; remove it to try again) are skipped.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    failures, last = _failed_before(folder / FAILURES, addresses), {}
    with (folder / FAILURES).open("a", encoding="utf-8") as log:
        for name, url in addresses.items():
            path = folder / f"{name}.jpg"
            if path.is_file() or name in failures:
                continue
            if stop():
                break
            host = urllib.parse.urlsplit(url).netloc if "[" not in url else url
            time.sleep(max(0.0, last.get(host, 0.0) + pause - time.monotonic()))
            try:
                data = fetch(url, **how)
                decode_image(data, name)
                atomic_write(path, data, durable=False)
            except (Refused, DamagedImage) as error:
                failures[name] = getattr(error, "reason", None) or str(error)
                log.write(json.dumps({"image": name, "url": url, "why": failures[name]}) + "\n")
                log.flush()
            last[host] = time.monotonic()
    there = sum((folder / f"{name}.jpg").is_file() for name in addresses)
    say(f"{folder}: {there:,} of {len(addresses):,} images are there, {len(failures):,} failed ({folder / FAILURES})")
    return there, failures


def _failed_before(path, addresses):
    failures = {}
    for line in read_lines(path) if path.is_file() else ():
        try:
            entry = parse_json(line)
            if addresses.get(entry["image"]) == entry["url"]:
                failures[entry["image"]] = str(entry["why"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line, of a run that was killed
    return failures
