"""The page in Airflow: who may see it, and what an operator does there, in a real browser.

With `CACHESYNC_IMAGES=docs/images` in the environment, the pictures in the documentation are made anew, which
takes some minutes longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest
from confluent_kafka import Producer
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from cachesync.entity import load_entities
from cachesync.install.installer import install
from cachesync.value import encode_value
from local.postgres import run_sql
from local.silent import Silent
from tests.acceptance.conftest import REPOSITORY
from tests.acceptance.dag_runs import run_dag
from tests.integration.refusals import denying
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from local.system import System

PAGE = "/cachesync/"
_IMAGES = os.environ.get("CACHESYNC_IMAGES")
_MINUTES = 2


@pytest.fixture(scope="module")
def viewer(api: httpx.Client) -> tuple[str, str]:
    """Name and password of a user who may read all DAGs, and trigger none."""
    name, password = f"viewer{secrets.token_hex(4)}", secrets.token_urlsafe(12)
    made = api.post(
        "/auth/fab/v1/users",
        json={
            "username": name,
            "password": password,
            "first_name": "Ann",
            "last_name": "Viewer",
            "email": f"{name}@localhost",
            "roles": [{"name": "Viewer"}],
        },
    )
    assert made.is_success, made.text
    return name, password


def test_page_is_for_those_who_may_read_the_dag_of_the_streams(
    system: System, log_in: Callable[[str, str], httpx.Client], viewer: tuple[str, str]
) -> None:
    airflow = system.airflow
    paths = [PAGE, f"{PAGE}page.js", *(f"{PAGE}api/{name}" for name in ("me", "status", "history"))]
    with httpx.Client(base_url=airflow.url, timeout=30) as anonymous:
        assert {anonymous.get(path).status_code for path in paths} == {401}
    # Jenkins may run the DAG reconcile, and nothing else.
    jenkins = log_in(airflow.jenkins_username, airflow.jenkins_password)
    assert {jenkins.get(path).status_code for path in paths} == {403}
    reader = log_in(*viewer)
    assert {reader.get(path).status_code for path in paths} == {200}
    assert reader.get(f"{PAGE}api/me").json() == {"reconcile": False, "letters": False}
    for dag in ("reconcile", "dead_letter_retry"):
        run = reader.post(f"/api/v2/dags/{dag}/dagRuns", json={"logical_date": None})
        assert run.status_code == 403


class Browser:
    """Airflow in a browser."""

    def __init__(self, url: str) -> None:
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
            options.add_argument(f"--{argument}")
        options.add_argument("--force-prefers-reduced-motion")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.url = url
        self.driver = Chrome(options, ChromeService(shutil.which("chromedriver")))
        self.driver.set_window_size(1440, 1080)

    def log_in(self, username: str, password: str) -> None:
        """Log in with Airflow's form."""
        self.driver.get(f"{self.url}/auth/login/")
        self.until("input[name=username]").send_keys(username)
        self.until("input[name=password]").send_keys(password)
        self.until("input[type=submit], button[type=submit]").click()
        WebDriverWait(self.driver, 60).until(lambda driver: "/auth/login" not in driver.current_url)

    def become(self, username: str, password: str) -> None:
        """Go on as another user, on the page that is open."""
        login = httpx.post(f"{self.url}/auth/token", json={"username": username, "password": password})
        token = login.json()["access_token"]
        self.driver.add_cookie({"name": "_token", "value": token, "path": "/", "httpOnly": True})

    def open(self) -> None:
        """Open the page from Airflow's navigation."""
        self.driver.get(self.url)
        self.until("a[href$='plugin/caches']").click()
        self.enter()

    def enter(self) -> None:
        """Go on in the frame with the page."""
        self.driver.switch_to.default_content()
        self.driver.switch_to.frame(self.until("iframe[title=Caches]"))
        self.until(".problems")

    def until(self, selector: str, text: str = "") -> Any:
        """Wait until an element that matches is shown and contains a text, and return it."""

        def found(driver: Chrome) -> Any:
            for element in driver.find_elements(By.CSS_SELECTOR, selector):
                if element.is_displayed() and text in element.text:
                    return element
            return None

        # A letter is parked by a run that takes place each minute.
        return WebDriverWait(self.driver, 180).until(found, f"{selector} with {text!r}")

    def click(self, selector: str, text: str = "") -> None:
        """Click what matches."""
        self.driver.execute_script("arguments[0].click()", self.until(selector, text))

    def look_up(self, entity: str, key: str) -> None:
        """Look up a key."""
        Select(self.until("#lookup-entity")).select_by_visible_text(entity)
        field = self.until("#lookup-key")
        field.clear()
        field.send_keys(key)
        self.click("#lookup button")

    def picture(self, name: str) -> None:
        """Keep a picture for the documentation."""
        if _IMAGES:
            Path(_IMAGES).mkdir(exist_ok=True)
            # The network has drawn the charts.
            WebDriverWait(self.driver, 10).until(
                lambda driver: driver.execute_script(
                    "return [...document.querySelectorAll('.plot')].every((plot) => plot.firstChild)"
                )
            )
            self.driver.save_screenshot(str(Path(_IMAGES) / f"{name}.png"))


@pytest.fixture(scope="module")
def browser(system: System) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed (on Debian: chromium, chromium-driver)")
    browser = Browser(system.airflow.url)
    yield browser
    browser.driver.quit()


def cached(system: System) -> str:
    """Return the key of a new row that both services have cached."""
    key = str(secrets.randbelow(10**9) + 10**9)
    run_sql(system.dsn, "INSERT INTO student (id, name, age) VALUES (:key, 'Ann', 21)", key=key)
    for name in ("sa", "sb"):
        with httpx.Client(base_url=system.services[name].url, timeout=20) as service:
            wait_until(lambda: service.get(f"/students/{key}").headers["x-cache"] == "HIT", "it is cached")
    return key


@pytest.fixture
def stale(system: System, slots: redis.Redis, dag: httpx.Client) -> str:
    """The key of a row of which sb's cache holds an old value, while no scheduled run repairs it."""
    del dag
    key = cached(system)
    name = f"sb:student:{key}"
    # Not what the event of the insert can still change.
    sql = "SELECT published_at IS NOT NULL FROM cachesync.change_log WHERE key = :'key'"
    wait_until(lambda: run_sql(system.dsn, sql, key=key) == "t", "the insert is published")
    held = slots.get(name)
    assert isinstance(held, bytes)
    version, fingerprint, payload = int(held[1:20]), held[20:28], json.loads(held[28:])
    old = json.dumps({**payload, "age": 20}).encode()
    slots.set(name, encode_value(version - 1, fingerprint, old), ex=3600)
    return key


@pytest.fixture(scope="module")
def past(system: System) -> None:
    """Some minutes in which rows were changed and read, for pictures with charts."""
    if not _IMAGES:
        return
    keys = range(7000, 7200)
    run_sql(
        system.dsn,
        f"INSERT INTO student (id, name, age) SELECT n, 'Ann', 20 FROM generate_series(7000, {keys[-1]}) n"
        " ON CONFLICT DO NOTHING",
    )
    ends = time.monotonic() + _MINUTES * 60
    with (
        httpx.Client(base_url=system.services["sa"].url) as sa,
        httpx.Client(base_url=system.services["sb"].url) as sb,
    ):
        while time.monotonic() < ends:
            key = secrets.choice(keys)
            if secrets.randbelow(5) == 0:
                sa.put(f"/students/{key}", json={"name": "Ann", "age": secrets.randbelow(80)})
            else:
                secrets.choice([sa, sb]).get(f"/students/{key}")
            time.sleep(0.02)


@pytest.mark.usefixtures("past")
def test_operator_finds_out_why_a_key_is_stale_and_repairs_it(
    system: System, browser: Browser, stale: str
) -> None:
    browser.log_in(system.airflow.username, system.airflow.password)
    browser.open()
    browser.picture("page")
    browser.look_up("student", stale)
    browser.until(".report .problem.critical", "sb is stale")
    assert browser.until(".slot[data-key=sb] mark").text == '"age": 20'
    assert browser.until(".slot[data-key=sa] .badge").text in {"right", "not cached"}
    browser.picture("page-key")

    browser.click("button[data-do=reconcile]")
    browser.click("dialog button.primary", "Dry run")
    browser.until("dialog .result", "Nothing was changed")
    browser.until("dialog .result", "sb, student: 1 stale")
    browser.picture("page-reconcile")
    browser.click("dialog button.primary", "Repair")
    browser.until("dialog .result", "All that was wrong is repaired")
    browser.click("dialog a", "Open the run")
    browser.driver.switch_to.default_content()
    WebDriverWait(browser.driver, 60).until(lambda driver: "/dags/reconcile/runs/" in driver.current_url)

    # The address of the page, with the key, leads there again.
    browser.driver.get(f"{browser.url}/plugin/caches/cachesync/#entity=student&key={stale}")
    browser.enter()
    browser.until(".report .problem.right")
    # Nothing of the page is against its own policy, or fails.
    log: list[dict[str, str]] = browser.driver.get_log("browser")  # type: ignore[no-untyped-call]
    said = [entry["message"] for entry in log if "/cachesync/" in entry["message"]]
    assert [message for message in said if "can escape its sandboxing" not in message] == []


@pytest.fixture
def page(system: System, browser: Browser) -> Browser:
    """The page, opened by the administrator."""
    browser.driver.get(f"{browser.url}/api/v2/version")
    browser.become(system.airflow.username, system.airflow.password)
    browser.open()
    return browser


def test_operator_replays_and_discards_the_letters_of_a_key(
    system: System, page: Browser, slots: redis.Redis
) -> None:
    key, poisoned = (str(secrets.randbelow(10**9) + 10**9) for _ in range(2))
    # A value cannot break out of the page, nor turn the text after it around.
    name = "<img src=x onerror=alert(1)>\u202e"
    with denying(slots, key[-1]):
        run_sql(system.dsn, "INSERT INTO student (id, name) VALUES (:key, :'name')", key=key, name=name)
        page.look_up("student", key)
        page.click(".report [data-do=replay]")
        page.until("dialog textarea")
    assert f'"name": "{name[:-1]}\\u202e"' in page.until(".report pre").text
    page.click("dialog button.primary", "Replay")
    # The run of every minute may have been faster.
    result = page.until("dialog .result.right", "letter").text
    assert result.startswith(("1 letter applied", "1 letter no longer needed", "There was no such letter"))
    page.click("dialog footer button", "Close")

    producer = Producer({"bootstrap.servers": system.bootstrap_servers})
    producer.produce("cachesync.student", key=poisoned.encode(), value=b"poison")
    assert producer.flush(30) == 0
    page.look_up("student", poisoned)
    page.until(".report .badge.critical", "parked")
    page.click(".report [data-do=discard]")
    # Without a reason, nothing happens.
    page.click("dialog button.danger", "Discard")
    page.until("dialog textarea").send_keys("It was a test.")
    page.click("dialog button.danger", "Discard")
    page.until("dialog .result.right", "1 letter discarded.")
    page.click("dialog footer button", "Close")
    sql = "SELECT reason FROM cachesync.dead_letter_action WHERE key = :'key' AND action = 'discarded'"
    assert run_sql(system.dsn, sql, key=poisoned) == "It was a test."


def test_page_follows_the_theme_of_airflow_and_fits_a_phone(page: Browser) -> None:
    def is_dark() -> bool:
        dark: bool = page.driver.execute_script(
            "const [mine, airflow] = [document, parent.document].map((it) => it.documentElement);"
            "const ground = parent.getComputedStyle(airflow).getPropertyValue('--chakra-colors-bg').trim();"
            "return mine.classList.contains('dark') && getComputedStyle(mine).backgroundColor === ground"
        )
        return dark

    for theme in ("dark", "light"):
        page.driver.switch_to.default_content()
        # As Airflow does when its user chooses a theme.
        page.driver.execute_script(
            "document.documentElement.classList.remove('dark', 'light');"
            "document.documentElement.classList.add(arguments[0]);",
            theme,
        )
        page.driver.switch_to.frame(page.until("iframe[title=Caches]"))
        wait_until(lambda dark=theme == "dark": is_dark() is dark, f"the page is {theme}")  # type: ignore[misc]
        if theme == "dark":
            page.picture("page-dark")

    page.driver.set_window_size(400, 860)
    try:
        for view in ("overview", "letters", "runs", "entities"):
            page.click(f"#tab-{view}")
            width, content = page.driver.execute_script(
                "return [innerWidth, document.documentElement.scrollWidth]"
            )
            assert content <= width, view
        page.picture("page-phone")
    finally:
        page.driver.set_window_size(1440, 1080)


def test_users_see_what_they_may(system: System, page: Browser, viewer: tuple[str, str]) -> None:
    page.until("[data-do=reconcile]")
    page.become(*viewer)
    # Airflow tells of plugins only those who may read plugins.
    page.driver.get(f"{page.url}{PAGE}")
    page.until(".card")
    assert not page.driver.find_elements(By.CSS_SELECTOR, "[data-do=reconcile]")
    # Jenkins may not read the page: while it is open, it ends.
    page.become(system.airflow.jenkins_username, system.airflow.jenkins_password)
    page.until("#alert", "it needs the permission to read the DAG cache_sync")
    page.driver.delete_all_cookies()
    page.until("#alert", "Your session has ended")


@pytest.mark.skipif(
    not _IMAGES, reason="stages faults for minutes: for the pictures in docs/why-is-it-stale.md"
)
def test_page_says_why_a_key_is_stale_and_what_to_do(
    system: System,
    page: Browser,
    api: httpx.Client,
    log_in: Callable[[str, str], httpx.Client],
    slots: redis.Redis,
) -> None:
    retry = log_in(system.airflow.username, system.airflow.password)
    retry.base_url = retry.base_url.join("/api/v2/dags/dead_letter_retry")
    change = "UPDATE student SET age = 22 WHERE id = :key"

    key = cached(system)
    api.patch("/api/v2/dags/cache_sync", json={"is_paused": True}).raise_for_status()
    for run in api.get("/api/v2/dags/cache_sync/dagRuns", params={"state": "running"}).json()["dag_runs"]:
        path = f"/api/v2/dags/cache_sync/dagRuns/{run['dag_run_id']}"
        api.patch(path, json={"state": "failed"}).raise_for_status()
    page.until(".problems", "Nobody consumes for sb")
    run_sql(system.dsn, change, key=key)
    page.look_up("student", key)
    page.until(".slot[data-key=sb] .badge", "wrong")
    page.until(".report .problem.critical", "nobody consumes for sb")
    page.until(".report .problem.critical", "Start the DAG cache_sync")
    page.picture("why-stream")
    api.patch("/api/v2/dags/cache_sync", json={"is_paused": False}).raise_for_status()
    page.until(".report .problem.right")

    key = cached(system)
    sql = "SELECT count(*) FROM cachesync.dead_letter_action WHERE key = :'key' AND action = 'parked'"

    def parked() -> bool:
        run_dag(retry, "letters")
        return run_sql(system.dsn, sql, key=key) == "1"

    with denying(slots, key[-1]):
        run_sql(system.dsn, change, key=key)
        wait_until(parked, "the letter is parked", 120)
    page.look_up("student", key)
    page.until(".report .problem.critical", "It is parked, and not retried")
    page.picture("why-letter")
    page.click(".report [data-do=replay]")
    page.click("dialog button.primary", "Replay")
    page.until("dialog .result.right")
    page.click("dialog footer button", "Close")
    page.until(".report .problem.right")

    key = cached(system)
    run_sql(system.dsn, "ALTER TABLE student DISABLE TRIGGER cachesync_log_update")
    run_sql(system.dsn, change, key=key)
    page.look_up("student", key)
    page.until(".report .problem.critical", "trigger cachesync_log_update is disabled")
    page.until(".report .problem.critical", "cachesync install")
    page.picture("why-trigger")

    async def mend() -> None:
        connection = await asyncpg.connect(system.dsn)
        await install(connection, load_entities(REPOSITORY / "entities.toml"), Silent())
        await connection.close()

    asyncio.run(mend())
    page.until(".report .problem.right")
