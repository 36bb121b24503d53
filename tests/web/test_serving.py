"""What the page's server lets whom see, and that nothing can be changed through it."""

import base64
import html
import json
import re
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Place, btrfs, subvolume
from tests.support.manual import text as manual_page
from tests.support.ports import free_port
from tests.support.wait import wait_until
from tests.web.conftest import Site, StartSite

PAGES = (
    "/",
    "/volumes/db",
    "/metrics",
    "/health",
    "/api/status",
    "/static/style.css",
    "/log",
    "/nowhere",
)


def test_the_pages_are_there(site: Site) -> None:
    site.daemon.call("Create", Name="db")

    statuses = {path: site.get(path).status for path in PAGES}

    assert statuses == dict.fromkeys(PAGES, 200) | {"/nowhere": 404}
    assert "the page is at" in site.daemon.stdout()


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_dates_and_ages_beyond_the_calendar_spoil_no_page(
    start_site: StartSite, place: Place, zone: str
) -> None:
    site = start_site(TZ=zone)
    site.daemon.call("Create", Name="db")
    for date in ("0001-01-01T00:00:00.000000", "9999-12-31T23:59:59.999999"):
        for name in (f"db@{date}", f"db@{date}@vault"):
            btrfs("subvolume", "snapshot", "-r", place.volumes / "db", place.snapshots / name)
    site.daemon.call("Schedule", Name="db", Action="purge:999999999d", Timer="50 3 29 2 *")

    statuses = {path: site.get(path).status for path in PAGES}

    assert statuses == dict.fromkeys(PAGES, 200) | {"/nowhere": 404}


def test_every_answer_is_hardened(site: Site) -> None:
    for path in PAGES:
        headers = site.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';"), path
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_takes_a_method_that_changes_things(site: Site, method: str) -> None:
    site.daemon.call("Create", Name="db")
    for path in (*PAGES, "/VolumeDriver.Remove", "/VolumeDriver.Snapshot"):
        assert site.get(path, method).status in (200, 404, 405), path
    assert site.daemon.names() == ["db"]
    assert site.daemon.snapshot_names() == []


def test_no_name_of_somebody_else_leads_here(site: Site) -> None:
    good = [
        "localhost",
        "127.0.0.1",
        f"127.0.0.1:{site.port}",
        "[::1]:80",
        "x.localhost:9",
        f"LocalHost:{site.port}",
        "192.0.2.1",
    ]
    bad = [
        "evil.example",
        f"evil.example:{site.port}",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "xlocalhost",
        "",
    ]

    assert {host: site.get("/", Host=host).status for host in good} == dict.fromkeys(good, 200)
    assert {host: site.get("/", Host=host).status for host in bad} == dict.fromkeys(bad, 421)
    assert site.get("/api/status", Host="evil.example").text.count("db") == 0


def test_a_token_is_always_asked_for_and_then_any_name_will_do(start_site: StartSite) -> None:
    token = ": ".join(("s3cret", "with a colon"))
    site = start_site(BUTTERVOLUME_WEB_TOKEN=token)

    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()

    right = [basic(token), f"Bearer {token}", f"bearer {token}"]
    wrong = [
        "",
        basic("s3cret"),
        basic(token + "x"),
        "Bearer",
        "Bearer x",
        "Digest a=b",
        "Basic !",
        "\xff",
    ]

    for path in PAGES:
        assert site.get(path).status == 401, path
    assert site.get("/").headers["WWW-Authenticate"].startswith("Basic ")
    for header in right:
        assert site.get("/", Authorization=header, Host="any.example").status == 200, header
    for header in wrong:
        assert site.get("/", Authorization=header).status == 401, header
    assert token not in site.daemon.stdout() + site.daemon.stderr()


def test_a_page_on_a_unix_socket_is_for_its_owner_and_group(
    start_daemon: StartDaemon, runtime: Path
) -> None:
    path = runtime / "page.sock"
    daemon = start_daemon(BUTTERVOLUME_WEB=f"unix:{path}")

    done = subprocess.run(
        ["curl", "-sS", "--unix-socket", path, "http://any.example/health"],
        capture_output=True,
        check=True,
        text=True,
    )

    assert done.stdout == "alive\n"
    assert path.stat().st_mode & 0o777 == 0o660
    daemon.stop()
    assert not path.exists()


def test_a_port_that_is_taken_costs_the_page_alone_until_it_is_free(
    start_daemon: StartDaemon,
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        daemon = start_daemon(BUTTERVOLUME_WEB=f"127.0.0.1:{port}")
        daemon.call("Create", Name="db")
    assert "Address already in use" in daemon.stderr()

    site = Site(daemon, port)

    def is_there() -> bool:
        with suppress(ConnectionError):
            return site.get("/health").status == 200
        return False

    wait_until(is_there, 60, "the page to be served after all")


def test_others_on_the_network_are_refused_without_a_token(start_daemon: StartDaemon) -> None:
    with pytest.raises(AssertionError, match="WEB_TOKEN must be set"):
        start_daemon(BUTTERVOLUME_WEB=f"0.0.0.0:{free_port()}")


def test_health_is_about_the_volumes_and_the_scheduler_not_about_a_job_that_fails(
    site: Site, place: Place
) -> None:
    site.daemon.call("Create", Name="db")
    site.daemon.call("Schedule", Name="db", Action="replicate:127.0.0.1", Timer="60")
    wait_until(lambda: not site.get("/api/status").json["Healthy"], what="the job to fail")
    assert site.get("/health").status == 200

    place.volumes.rename(place.directory / "elsewhere")
    try:
        assert site.get("/health").status == 503
        assert "unavailable" in site.get("/?x=1").text
    finally:
        (place.directory / "elsewhere").rename(place.volumes)
    assert site.get("/health").status == 200


def test_the_json_is_that_of_the_endpoint(site: Site) -> None:
    site.daemon.call("Create", Name="db")
    site.daemon.call("Snapshot", Name="db")

    served, answered = site.get("/api/status").json, site.daemon.call("Status")

    assert set(served) == set(answered) - {"Err"}
    assert served["Volumes"] == answered["Volumes"]


HOSTILE = ("<script>x()<", "a&b\"c'd", "\u202egnp", "{{ 7*7 }}", "%2e%2e", "a b#c?d=e", "ü\u2028")


def test_hostile_names_are_text(site: Site, place: Place) -> None:
    for name in HOSTILE:
        subvolume(place.volumes / name)
        btrfs(
            "subvolume", "snapshot", "-r", place.volumes / name, place.snapshots / f"{name}@1@<b>"
        )
        btrfs("subvolume", "snapshot", "-r", place.volumes / name, place.snapshots / f"{name}@1")

    home = site.get("/").text
    assert "<script>x" not in home
    assert "<b>" not in home
    assert "{{ 7*7 }}" in home
    assert "\u202e" not in home
    links = re.findall(r'href="(/volumes/[^"]+)"', home)
    assert len(links) == len(HOSTILE)
    for link in links:
        page = site.get(html.unescape(link))
        assert page.status == 200, link
        assert "<script>x" not in page.text
        assert "<b>" not in page.text
        assert "\u202e" not in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/volumes/nobody",
        "/volumes/..%2f..%2fetc",
        "/volumes/%00",
        "/volumes/" + "x" * 3000,
        "/static/../app.py",
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(site: Site, path: str) -> None:
    got = site.get(path)

    assert got.status == 404
    assert "<h1" in got.text


@pytest.mark.parametrize(
    "query",
    [
        "log?n=0",
        "log?n=x&failed=",
        "log?volume=%00",
        "?page=0",
        "?page=99999999",
        "?page=-1",
        "?page=x",
        "?q=%ff%00%0a",
        "?q=" + "x" * 5000,
    ],
)
def test_odd_questions_get_a_page(site: Site, query: str) -> None:
    site.daemon.call("Create", Name="db")
    assert site.get(f"/{query}").status == 200


def test_thousands_of_volumes_come_by_the_hundred_those_with_problems_first(
    site: Site, place: Place
) -> None:
    for number in range(120):
        subvolume(place.volumes / f"v{number:03}")
    site.daemon.call("Schedule", Name="v119", Action="purge:1h:1d", Timer="60")

    first, second = site.get("/").text, site.get("/?page=2").text
    found = site.get("/?q=V11").text

    def names(page: str) -> list[str]:
        return re.findall(r'href="/volumes/(v\d+)"', page.partition("<tbody>")[2])

    assert names(first)[:2] == ["v119", "v000"]
    assert len(names(first)) == 100
    assert len(names(second)) == 20
    assert "page 2 of 2" in second
    assert set(names(found)) == {f"v11{number}" for number in range(10)}


def test_a_storm_of_readers_is_answered_and_docker_too(site: Site) -> None:
    site.daemon.call("Create", Name="db")
    stop = threading.Event()
    pages = [0] * 8

    def storm(reader: int) -> None:
        while not stop.is_set():
            assert site.get("/").status == 200
            pages[reader] += 1

    readers = [threading.Thread(target=storm, args=(reader,)) for reader in range(len(pages))]
    for thread in readers:
        thread.start()
    try:
        wait_until(lambda: site.daemon.call("Get", Name="db") and min(pages) >= 3)
    finally:
        stop.set()
        for thread in readers:
            thread.join()

    assert site.daemon.call("Get", Name="db")["Volume"]["Name"] == "db"


def test_a_slow_reader_holds_up_nobody(site: Site) -> None:
    slow = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", site.port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        slow.append(connection)
    try:
        assert site.get("/").status == 200
    finally:
        for connection in slow:
            connection.close()


# Prometheus

RULES = Path(__file__).parents[2] / "docs/reference/buttervolume.rules.yml"


def test_the_metrics_are_as_prometheus_wants_them(site: Site, place: Place) -> None:
    site.daemon.call("Create", Name="db")
    site.daemon.call("Snapshot", Name="db")
    subvolume(place.volumes / 'odd"\\name')
    site.daemon.call("Schedule", Name="db", Action="replicate:127.0.0.1", Timer="60")
    wait_until(lambda: not site.get("/api/status").json["Healthy"], what="the job to fail")
    got = site.get("/metrics")

    assert got.headers["Content-Type"].startswith("text/plain; version=")
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=got.text,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert (
        'buttervolume_job_consecutive_failures{action="replicate:127.0.0.1",volume="db"} 1.0'
        in (
            got.text.replace(
                '{volume="db",action="replicate:127.0.0.1"}',
                '{action="replicate:127.0.0.1",volume="db"}',
            )
        )
    )
    assert 'buttervolume_problems{kind="failing"} 1.0' in got.text


def test_the_shipped_rules_are_right() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_a_job_that_is_late_fires_an_alert_whether_it_runs_or_not(tmp_path: Path) -> None:
    where = {"instance": "nas", "job": "buttervolume"}
    series = {
        'buttervolume_problems{instance="nas",job="buttervolume",kind="late"}': 2,
        'buttervolume_job_state{instance="nas",job="buttervolume",volume="db",action="snapshot",'
        'state="late"}': 1,
        'buttervolume_job_state{instance="nas",job="buttervolume",volume="web",action="mirror:b",'
        'state="late"}': 0,
    }
    late = {"volume": "db", "action": "snapshot", "state": "late"}
    expected = {
        "ButtervolumeJobLate": (
            where | late,
            "snapshot of db on nas has not succeeded for more than twice its period",
        ),
        "ButtervolumeJobRunsLate": (
            where,
            "1 job(s) on nas are running, and have not succeeded for more than twice their period",
        ),
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{n}x9"} for name, n in series.items()],
        "alert_rule_test": [
            {
                "eval_time": "5m",
                "alertname": name,
                "exp_alerts": [
                    {
                        "exp_labels": labels | {"severity": "warning"},
                        "exp_annotations": {"summary": summary},
                    }
                ],
            }
            for name, (labels, summary) in expected.items()
        ],
    }
    file = tmp_path / "tests.json"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": [test]}))

    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_of_the_rules_is_one_that_there_is_and_all_are_in_the_manual(
    site: Site,
) -> None:
    site.daemon.call("Create", Name="db")
    site.daemon.call("Schedule", Name="db", Action="snapshot", Timer="60")
    wait_until(lambda: site.daemon.snapshot_names(), what="the job to run")

    families = set(re.findall(r"^# TYPE (\w+) ", site.get("/metrics").text, re.MULTILINE))

    used = set(re.findall(r"buttervolume_\w+", RULES.read_text()))
    assert used
    assert used <= families
    listed = re.findall(r"^``(buttervolume_\w+)", manual_page("reference/page"), re.MULTILINE)
    assert families <= set(listed)


def test_prometheus_fires_the_alert_for_a_replication_that_fails(
    site: Site, tmp_path: Path
) -> None:
    site.daemon.call("Create", Name="db")
    site.daemon.call("Schedule", Name="db", Action="replicate:127.0.0.1", Timer="60")
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{RULES}"]
scrape_configs:
  - job_name: buttervolume
    static_configs: [{{targets: ["127.0.0.1:{site.port}"]}}]
"""
    )
    log = (tmp_path / "log").open("w")
    with subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
    ) as prometheus:
        try:
            server = Site(site.daemon, port)

            def firing() -> list[dict[str, str]]:
                try:
                    answer = json.loads(server.get("/api/v1/alerts").text)
                except (OSError, ValueError):
                    return []
                alerts = answer.get("data", {}).get("alerts", [])
                return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

            wait_until(
                lambda: any(a["alertname"] == "ButtervolumeJobFailing" for a in firing()),
                timeout=60,
                what="the alert",
            )
            (alert,) = [a for a in firing() if a["alertname"] == "ButtervolumeJobFailing"]
            assert (alert["volume"], alert["action"]) == ("db", "replicate:127.0.0.1")
        finally:
            prometheus.terminate()
            log.close()
