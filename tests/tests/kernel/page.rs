//! The page, in a real browser: what it shows is what happens. Screenshots are kept in `target/tmp/page`.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, Browser, CHAIN, Capture, Depot, Load, Pod, Scheme, Shop, World, eventually, test};

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
/// Seconds.
const WARM_UP: u32 = 15;

fn screenshot(browser: &Browser, name: &str) -> Result<()> {
    let folder: PathBuf = [env!("CARGO_TARGET_TMPDIR"), "page"].iter().collect();
    fs::create_dir_all(&folder)?;
    browser.screenshot(&folder.join(format!("{name}.png")))
}

/// In light and dark, on a laptop and a phone; as it was again afterwards.
fn screenshots(browser: &Browser, name: &str) -> Result<()> {
    for (device, width, height) in [("laptop", 1280, 800), ("phone", 390, 844)] {
        browser.resize(width, height)?;
        for (scheme, word) in [(Scheme::Light, "light"), (Scheme::Dark, "dark")] {
            browser.prefer(scheme)?;
            screenshot(browser, &format!("{name}-{device}-{word}"))?;
        }
        // Nothing is wider than the screen: only tables are pushed sideways, each by itself.
        let over = browser.script("return document.documentElement.scrollWidth - innerWidth", "")?;
        ensure!(over.as_f64().is_some_and(|over| over <= 0.0), "{name} on a {device} is too wide by {over}");
    }
    browser.prefer(Scheme::Light)?;
    browser.resize(1280, 800)
}

fn open(world: &World) -> Result<(Agent, Pod)> {
    world.namespace("shop", Capture::Enabled)?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok((agent, client))
}

/// Waits until the page says so somewhere.
fn says(browser: &Browser, selector: &str, part: &str) -> Result<String> {
    eventually(&format!("the page says `{part}`"), || {
        let text = browser.text(selector)?;
        ensure!(text.contains(part), "{selector} says: {text}");
        Ok(text)
    })
}

/// A number as the page writes it.
fn number(text: &str) -> Result<u64> {
    text.replace(',', "").trim().parse().with_context(|| format!("`{text}` is no number"))
}

/// What `/api/service` tells of the depot.
fn detail(agent: &Agent) -> Result<Value> {
    let (status, body) = agent.get("/api/service?namespace=shop&name=depot&port=80")?;
    ensure!(status == 200, "{status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// That the share which the new instance got follows the one that it was to get, as far as chance allows.
fn follows_the_curve(detail: &Value, pod: &str) -> Result<()> {
    let endpoints = detail["endpoints"].as_array().context("endpoints")?;
    let endpoint = endpoints.iter().find(|endpoint| endpoint["pod"] == pod).context("the new instance")?;
    let numbers = |name: &str| {
        endpoint["seconds"][name].as_array().map(|all| all.iter().map(Value::as_f64).collect::<Vec<_>>())
    };
    let (wanted, got) =
        (numbers("target_shares").context("target")?, numbers("actual_shares").context("actual")?);
    // What was got is the mean of five seconds, and so are two seconds late.
    let late = wanted.iter().zip(got.iter().skip(2));
    let warming: Vec<(f64, f64)> = late
        .filter_map(|(wanted, got)| Some(((*wanted)?, (*got)?)))
        .filter(|(wanted, _)| *wanted > 0.2 && *wanted < 0.95)
        .collect();
    ensure!(warming.len() >= 5, "{} seconds of the curve: {endpoint}", warming.len());
    let off = warming.iter().map(|(wanted, got)| (wanted - got).abs()).sum::<f64>() / warming.len() as f64;
    ensure!(off < 0.1, "it is {off:.3} off the curve: {warming:?}");
    Ok(())
}

#[test]
fn the_page_shows_what_happens_and_metrics_say_the_same() {
    test("page", |world| {
        let (agent, client) = open(world)?;
        let browser = world.browser()?;
        browser.resize(1280, 800)?;
        browser.go(&format!("http://{}/", agent.admin()))?;
        says(&browser, "main", "No managed services")?;
        screenshots(&browser, "empty")?;

        let depot = Depot::open(world, &agent, &client)?;
        let out = world.pod("shop", "out").capture("disabled").start()?;
        let _first = depot.old_instance("one")?;
        let second = depot.instance("two")?;
        depot.policy(json!({
            "loadBalancer": {"warmUp": {"duration": format!("{WARM_UP}s")}},
            "rateLimits": [{
                "name": "bursts", "requests": 5, "interval": "1h",
                "match": {"path": {"type": "Exact", "value": "/burst"}},
            }],
            "circuitBreaker": {"minimumRequests": 20},
        }))?;
        let load = depot.load(300, WARM_UP + 8)?;
        second.pod.set_ready_since(true, SystemTime::now())?;
        let burst = format!("{}/burst", depot.service.url());
        for _ in 0..12 {
            client.run("curl", &["-sS", "-m", "10", "-o", "/dev/null", &burst])?;
        }

        // Through the services, to the one.
        browser.click("depot.shop:80")?;
        says(&browser, "h1", "depot.shop:80")?;
        says(&browser, "main", "warming up")?;
        says(&browser, "#warm-up", "depot-two")?;
        // The curve is drawn on, second by second.
        let drawn = || -> Result<u64> {
            let points = browser.script(
                "return document.querySelector('#warm-up path.good').getAttribute('d').split(/[ML]/).length",
                "",
            )?;
            points.as_u64().context("points")
        };
        let before = drawn()?;
        eventually("the curve grows", || {
            let now = drawn()?;
            ensure!(now >= before + 2, "{before}, then {now}");
            Ok(())
        })?;
        screenshot(&browser, "warming-up")?;

        // By keyboard: what has the focus keeps it while the numbers change.
        browser.script("document.querySelector('nav a').focus()", "")?;
        browser.press(TAB)?;
        let focused = || browser.script("return document.activeElement.textContent", "");
        let at = focused()?;
        ensure!(at == "Calls", "Tab leads to {at}");
        browser.press(ENTER)?;
        says(&browser, "h1", "Calls")?;
        let calls = says(&browser, "main table", "shop/client")?;
        ensure!(calls.contains("depot.shop:80") && calls.contains("baseline"), "{calls}");
        browser.script("document.querySelector('main td a').focus()", "")?;
        let rate = browser.table("main table")?[0][3].clone();
        eventually("the numbers change", || {
            ensure!(browser.table("main table")?[0][3] != rate, "still {rate}");
            Ok(())
        })?;
        ensure!(focused()? == "depot.shop:80", "the focus has gone to {}", focused()?);
        screenshots(&browser, "calls")?;

        let report = load.finish()?;
        ensure!(report.failed == 0, "{report:?}");
        follows_the_curve(&detail(&agent)?, "depot-two")?;

        // All is quiet: page and metrics count the same.
        let metrics = agent.metrics()?;
        let to = [("destination_service", "depot")];
        let requests = metrics.sum("sluice_requests_total", &to) as u64;
        let limit = |decision| {
            let labels = [("rule", "bursts"), ("decision", decision)];
            metrics.sum("sluice_rate_limit_requests_total", &labels) as u64
        };
        ensure!(
            (limit("allowed"), limit("rejected")) == (5, 7),
            "{:?}",
            (limit("allowed"), limit("rejected"))
        );
        let ever = || -> Result<u64> {
            let rows = browser.table("main table")?;
            rows.iter().map(|row| number(row.last().context("a cell")?)).sum()
        };
        eventually("the calls add up to the metric", || {
            ensure!(ever()? == requests, "{} and {requests}", ever()?);
            Ok(())
        })?;
        browser.click("Services")?;
        browser.click("depot.shop:80")?;
        let told = says(&browser, "main", "requests since the agent started")?;
        let total = told.lines().find(|line| line.contains("since the agent started")).unwrap_or_default();
        let words: Vec<&str> = total.split(' ').collect();
        let before = |word: &str| {
            let at = words.iter().position(|other| *other == word).with_context(|| total.to_owned())?;
            number(words[at - 1])
        };
        ensure!(
            (before("requests")?, before("rejected.")?) == (requests, 7),
            "{total}, and {requests} in the metrics"
        );
        let limits = says(&browser, "main", "bursts")?;
        let rule = limits.lines().find(|line| line.starts_with("bursts")).unwrap_or_default().to_owned();
        let cells: Vec<&str> = rule.split('\t').map(str::trim).collect();
        ensure!(cells[2..] == ["enforce", "5", "0", "7", "0"], "{rule}");
        // What the browser has drawn is what the agent tells.
        let history: u64 = detail(&agent)?["seconds"]["requests"]
            .as_array()
            .context("seconds")?
            .iter()
            .filter_map(Value::as_u64)
            .sum();
        ensure!(history == requests, "{history} requests second by second, {requests} in the metrics");
        browser.click("15 min")?;
        screenshots(&browser, "service")?;

        browser.click("Pods")?;
        says(&browser, "h1", "Pods")?;
        let pods = browser.table("main table")?;
        let state = |pod: &Pod| {
            let name = format!("shop/{}", pod.name);
            pods.iter().find(|row| row[0] == name).map(|row| (row[2].clone(), row[6].clone()))
        };
        ensure!(state(&client).is_some_and(|(state, _)| state == "enrolled"), "{pods:?}");
        ensure!(
            state(&out).is_some_and(|(state, why)| state == "not enrolled" && why.contains("annotation")),
            "{pods:?}"
        );
        screenshots(&browser, "pods")?;

        let complaints = browser.complaints()?;
        ensure!(complaints.is_empty(), "{complaints:?}");
        Ok(())
    });
}

/// With hundreds of services, of which one is busy: each stays where its name puts it, until the reader chooses otherwise.
#[test]
fn the_page_keeps_its_rows_in_place_and_finds_a_service() {
    test("page-many", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().args(&["--node", world.node_name()]).start()?;
        agent.enrolled(&client)?;
        let depot = Depot::open(world, &agent, &client)?;
        let _one = depot.old_instance("one")?;
        for number in 0..500_u32 {
            world.apply(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "namespace": "shop", "name": format!("s-{number:03}") },
                "spec": {
                    "clusterIP": format!("10.98.{}.{}", number / 250, number % 250 + 1),
                    "ports": [{ "name": "http", "port": 80 }],
                },
            }))?;
        }
        let load = depot.load(50, 600)?;
        let browser = world.browser()?;
        browser.resize(1280, 800)?;
        browser.go(&format!("http://{}/", agent.admin()))?;
        let names = || -> Result<Vec<String>> {
            Ok(browser.table("main table")?.into_iter().map(|row| row[0].clone()).collect())
        };
        eventually("all services are shown", || {
            let shown = names()?;
            ensure!(shown.len() == 501, "{}", shown.len());
            Ok(())
        })?;
        let shown = names()?;
        ensure!(shown[0] == "depot.shop:80" && shown[1] == "s-000.shop:80" && shown[500] == "s-499.shop:80");
        // They stay while numbers change.
        let rate = || anyhow::Ok(browser.table("main table")?[0][2].clone());
        let before = rate()?;
        eventually("the numbers change", || {
            ensure!(rate()? != before, "{before}");
            Ok(())
        })?;
        ensure!(names()? == shown, "rows have moved");
        let title = browser.script("return document.title", "")?;
        let title = title.as_str().unwrap_or_default();
        ensure!(title == format!("{} - Sluice", world.node_name()), "{title}");
        screenshot(&browser, "many")?;

        // By a column, the largest first; then the smallest; then by name again.
        let press = |column: &str| {
            browser.script(
                &format!("document.querySelector('main button[data-column=\"{column}\"]').click()"),
                "",
            )
        };
        let sorted =
            || browser.script("return document.querySelector('main th[aria-sort]')?.ariaSort ?? ''", "");
        press("Requests")?;
        ensure!(sorted()? == "descending" && names()?[0] == "depot.shop:80", "{}", sorted()?);
        press("Requests")?;
        ensure!(sorted()? == "ascending" && names()?[500] == "depot.shop:80", "{}", sorted()?);
        press("Requests")?;
        ensure!(sorted()? == "" && names()? == shown, "{}", sorted()?);

        // What is typed stays while numbers change.
        let seek = |text: &str| {
            browser.script(
                &format!(
                    "const field = document.getElementById('search'); field.focus(); field.value = '{text}'; \
                     field.dispatchEvent(new Event('input', {{ bubbles: true }}))"
                ),
                "",
            )
        };
        seek("S-25")?;
        let found: Vec<_> = (250..260).map(|number| format!("s-{number}.shop:80")).collect();
        ensure!(names()? == found, "{:?}", names()?);
        says(&browser, "main .search", "10 of 501")?;
        let age = browser.text(".tiles")?;
        eventually("a second has passed", || {
            ensure!(browser.text(".tiles")? != age, "{age}");
            Ok(())
        })?;
        let typed = browser.script(
            "return [document.activeElement.id, document.getElementById('search').value].join(' ')",
            "",
        )?;
        ensure!(typed == "search S-25" && names()? == found, "{typed}");
        screenshot(&browser, "many-found")?;
        seek("nothing")?;
        says(&browser, "main", "No service's name has this in it.")?;
        seek("")?;
        ensure!(names()? == shown);
        let report = load.stop()?;
        ensure!(report.failed == 0, "{report:?}");
        ensure!(browser.complaints()?.is_empty(), "{:?}", browser.complaints()?);
        Ok(())
    });
}

/// A service that fails is seen to be broken off.
#[test]
fn the_page_shows_a_circuit_breaker_that_opens() {
    test("page-breaker", |world| {
        let (agent, client) = open(world)?;
        let depot = Depot::open(world, &agent, &client)?;
        let mut app = depot.old_instance("one")?;
        depot.policy(json!({"circuitBreaker": {"minimumRequests": 20, "openDuration": "3s"}}))?;
        let load = depot.load(100, 300)?;
        let browser = world.browser()?;
        browser.resize(1280, 800)?;
        browser.go(&format!("http://{}/#/service/shop/depot/80", agent.admin()))?;
        says(&browser, "main", "closed")?;
        depot.restart(&mut app, "one", &["--status", "500"])?;
        says(&browser, "main", "failed, the limit is")?;
        says(&browser, "main", "half-open")?;
        depot.restart(&mut app, "one", &[])?;
        says(&browser, "main", "probes were good")?;
        screenshots(&browser, "breaker")?;
        let bands = browser.script("return document.querySelectorAll('svg.strip rect.open').length", "")?;
        ensure!(bands.as_u64().is_some_and(|bands| bands >= 1), "{bands} stretches on the timeline");
        browser.click("Services")?;
        says(&browser, "h1", "Services")?;
        screenshots(&browser, "services")?;
        load.stop().map(drop)
    });
}

/// A lane, from where its tag is shown: which pods it has, where its requests go, who enters it.
#[test]
fn the_page_shows_a_lane() {
    test("page-lane", |world| {
        let shop = Shop::open(world, Capture::Enabled)?;
        let agent = world.agent().start()?;
        for pod in shop.pods() {
            agent.enrolled(pod)?;
        }
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane",
            "metadata": { "name": "gray", "namespace": "shop" },
            "spec": {
                "tag": "gray", "targetRefs": [{ "name": "gateway" }],
                "serviceFallbacks": [{ "name": "pricing", "fallback": "Baseline" }], "fallback": "Fail",
                "entry": [{ "match": { "path": { "value": "/beta" } } }],
            },
        }))?;
        // The gateway has no pod in the lane, and the lane does not let it answer.
        let orders = &shop.services[1];
        let load = Load::start(
            &shop.client,
            &orders.url(),
            &["--rate", "50", "--connections", "2", "--header", "x-mse-tag: gray"],
        )?;
        let browser = world.browser()?;
        browser.resize(1280, 800)?;
        browser.go(&format!("http://{}/#/pods", agent.admin()))?;
        says(&browser, "main", "shop/orders-gray")?;
        browser.click("Lanes")?;
        says(&browser, "main", "Find a lane")?;
        screenshots(&browser, "lanes")?;
        browser.click("gray")?;
        says(&browser, "h1", "Lane gray")?;
        let table = "main table[aria-label^='Attempts by']";
        let row = |name: &str| -> Result<Vec<String>> {
            let rows = browser.table(table)?;
            rows.iter().find(|row| row[0] == name).cloned().with_context(|| format!("no {name}: {rows:?}"))
        };
        let goes = |name: &str, wanted: [&str; 3]| {
            eventually(&format!("{name} is told"), || {
                let row = row(name)?;
                ensure!(row[1..4] == wanted, "{row:?}");
                Ok(())
            })
        };
        goes("gateway.shop:80", ["none", "nobody: rejected with 503 (Fail)", "Fail"])?;
        goes("orders.shop:80", ["orders-gray", "the lane", "Fail"])?;
        goes("pricing.shop:80", ["none", "the baseline", "Baseline"])?;
        goes("stock.shop:80", ["stock-gray", "the lane", "Fail"])?;
        let names = || -> Result<Vec<String>> {
            Ok(browser.table(table)?.into_iter().map(|row| row[0].clone()).collect())
        };
        let placed = names()?;
        ensure!(placed == CHAIN.map(|name| format!("{name}.shop:80")), "{placed:?}");
        eventually("its requests are told", || {
            let row = row("orders.shop:80")?;
            ensure!(row[4] != "0/s" && row[5] == "0/s", "{row:?}");
            Ok(())
        })?;
        ensure!(names()? == placed, "rows have moved: {:?}", names()?);
        let entry = browser.table("main table[aria-label^='A request without']")?;
        ensure!(entry[0][..3] == ["entry[0] of shop/gray", "requests with /beta/*", "gateway"], "{entry:?}");
        let objects = browser.table("main table[aria-label='As this agent took them']")?;
        let conditions = &objects[0];
        ensure!(conditions[0] == "shop/gray" && conditions[1].starts_with("accepted"), "{objects:?}");
        screenshots(&browser, "lane")?;
        // A pod that is not ready gets nothing, and it is seen at once who does.
        shop.app("stock-gray")?.pod.set_ready(false)?;
        goes("stock.shop:80", ["stock-gray (not ready)", "nobody: rejected with 503 (Fail)", "Fail"])?;
        shop.app("stock-gray")?.pod.set_ready(true)?;
        goes("stock.shop:80", ["stock-gray", "the lane", "Fail"])?;
        // In all namespaces, and where there is nothing of it.
        browser.click("all namespaces")?;
        goes("orders.shop:80", ["orders-gray", "the lane", "Fail"])?;
        browser.go(&format!("http://{}/#/lane/blue", agent.admin()))?;
        says(&browser, "main", "knows no such lane")?;
        load.stop()?;
        let complaints = browser.complaints()?;
        ensure!(complaints.is_empty(), "{complaints:?}");
        Ok(())
    });
}

#[test]
fn the_page_says_that_the_agent_is_gone_and_goes_on_when_it_is_back() {
    test("page-gone", |world| {
        let (mut agent, client) = open(world)?;
        let browser = world.browser()?;
        browser.go(&format!("http://{}/#/pods", agent.admin()))?;
        says(&browser, "main", "shop/client")?;
        let address = agent.admin();
        agent.kill()?;
        says(&browser, "#lost", "The agent has not responded")?;
        screenshots(&browser, "gone")?;
        let agent = world.agent().admin(address).start()?;
        agent.enrolled(&client)?;
        eventually("the page goes on", || {
            let hidden = browser.script("return document.getElementById('lost').hidden", "")?;
            ensure!(hidden == true, "it still says that the agent is gone");
            Ok(())
        })?;
        says(&browser, "#health", "ready").map(drop)
    });
}

/// What users write into objects is shown as it is, and is never more than text.
#[test]
fn hostile_text_is_only_text() {
    const SCRIPT: &str = "<img src=x onerror=\"window.hacked = true\"><script>window.hacked = true</script>";
    test("page-hostile", |world| {
        let (agent, _client) = open(world)?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "hostile", "namespace": "shop"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "loadBalancer": {"warmUp": {"duration": SCRIPT}},
            },
        }))?;
        let browser = world.browser()?;
        browser.go(&format!("http://{}/#/policies", agent.admin()))?;
        says(&browser, "main", "<img src=x onerror=")?;
        // In an address, too.
        browser.go(&format!(
            "http://{}/#/service/<img src=x onerror=window.hacked=true>/<b>/80",
            agent.admin()
        ))?;
        says(&browser, "main", "knows no such service")?;
        browser.go(&format!("http://{}/#/policies", agent.admin()))?;
        says(&browser, "main", "<img src=x onerror=")?;
        // Time to be hacked in.
        thread::sleep(Duration::from_secs(2));
        let found = browser
            .script("return [window.hacked ?? null, document.querySelectorAll('main img, main script, title b').length]", "")?;
        ensure!(found == json!([null, 0]), "{found}");
        screenshots(&browser, "policies")?;
        let inline = browser.script("const made = document.createElement('script'); made.textContent = 'window.hacked = true'; document.body.append(made); return window.hacked ?? null", "")?;
        ensure!(inline.is_null(), "the policy of the page lets inline scripts run");
        Ok(())
    });
}
