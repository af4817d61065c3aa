//! A real browser, as a person would have it, driven over the WebDriver protocol: headless Chromium behind chromedriver,
//! both in the node's network namespace, where the agent answers. <https://www.w3.org/TR/webdriver2/>

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::{NetNs, Process, eventually, node::Node};

/// In a network namespace of our own: nobody else listens there.
const PORT: u16 = 4444;
/// Of one command. Loading a page is the longest.
const LIMIT: Duration = Duration::from_secs(60);

const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
];

/// How a person sees the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Light,
    Dark,
}

/// A browser with one window. Dropping it closes it.
#[derive(Debug)]
pub struct Browser {
    netns: Arc<NetNs>,
    session: String,
    _driver: Process,
}

impl Browser {
    pub(crate) fn open(node: &Node, mut command: Command) -> Result<Self> {
        let home = node.directory.join("browser");
        fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
        command.arg(format!("--port={PORT}")).env("HOME", &home).env("TMPDIR", &home);
        let driver = Process::spawn("chromedriver", &mut command, node.logs().join("chromedriver.log"))
            .context("the browser needs chromedriver: `cargo xtask setup browser` installs it")?;
        let mut browser = Self { netns: Arc::clone(&node.netns), session: String::new(), _driver: driver };
        eventually("chromedriver is ready", || {
            let status = browser.ask("GET", "/status", &Value::Null)?;
            ensure!(status["ready"] == true, "{status}");
            Ok(())
        })?;
        let profile = format!("--user-data-dir={}", home.join("profile").display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([profile.as_str()]).collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.ask("POST", "/session", &wanted)?;
        session["sessionId"].as_str().context("no session")?.clone_into(&mut browser.session);
        Ok(browser)
    }

    pub fn go(&self, url: &str) -> Result<()> {
        self.tell("url", &json!({ "url": url })).map(drop)
    }

    /// In CSS pixels.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        // Windows have a least width; screens of phones are narrower.
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics)
    }

    pub fn prefer(&self, scheme: Scheme) -> Result<()> {
        let value = if scheme == Scheme::Light { "light" } else { "dark" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", &media)
    }

    /// What a script returns; `arguments[0]` is `argument`.
    pub fn script(&self, script: &str, argument: &str) -> Result<Value> {
        self.tell("execute/sync", &json!({"script": script, "args": [argument]}))
    }

    /// The visible text of the first element that matches.
    pub fn text(&self, selector: &str) -> Result<String> {
        let found = self.script("return document.querySelector(arguments[0])?.innerText", selector)?;
        Ok(found.as_str().with_context(|| format!("there is no {selector} on the page"))?.to_owned())
    }

    /// The texts of a table's body, row by row: of the first that matches.
    pub fn table(&self, selector: &str) -> Result<Vec<Vec<String>>> {
        let script = "const table = document.querySelector(arguments[0]);
            return table && [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim()))";
        let rows = self.script(script, selector)?;
        serde_json::from_value(rows).with_context(|| format!("there is no table {selector} on the page"))
    }

    /// Clicks the link or button with this text, as a person does: it must be visible and in nobody's shadow.
    pub fn click(&self, text: &str) -> Result<()> {
        let by = json!({"using": "xpath", "value": format!("//*[self::a or self::button][normalize-space()='{text}']")});
        eventually(&format!("`{text}` can be clicked"), || {
            let element = self.tell("element", &by)?;
            let id = element.as_object().and_then(|element| element.values().next()?.as_str());
            let path = format!("element/{}/click", id.context("no element")?);
            self.tell(&path, &json!({})).map(drop)
        })
    }

    /// Presses keys; `\u{e004}` is Tab, `\u{e007}` Enter.
    pub fn press(&self, keys: &str) -> Result<()> {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|what| json!({"type": what, "value": key.to_string()})))
            .collect();
        let keyboard = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.tell("actions", &keyboard).map(drop)
    }

    /// What the browser complained of since this was last asked.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let entries = self.tell("se/log", &json!({"type": "browser"}))?;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let bad = |entry: &&Value| entry["level"] != "INFO" && entry["level"] != "DEBUG";
        Ok(entries.iter().filter(bad).map(|entry| entry["message"].to_string()).collect())
    }

    /// Writes what is to be seen of the whole page as a PNG.
    pub fn screenshot(&self, file: &Path) -> Result<()> {
        let shot = self.tell(
            "goog/cdp/execute",
            &json!({"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": true}}),
        )?;
        let image = BASE64_STANDARD.decode(shot["data"].as_str().context("no image")?)?;
        fs::write(file, image).with_context(|| format!("cannot write {}", file.display()))
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Result<()> {
        self.tell("goog/cdp/execute", &json!({"cmd": command, "params": parameters})).map(drop)
    }

    fn tell(&self, command: &str, body: &Value) -> Result<Value> {
        self.ask("POST", &format!("/session/{}/{command}", self.session), body)
    }

    /// One command: the value of its answer.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let exchange = || -> std::io::Result<Vec<u8>> {
            let mut connection = TcpStream::connect(address)?;
            connection.set_read_timeout(Some(LIMIT))?;
            let length = body.len();
            write!(
                connection,
                "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
                 content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            )?;
            let mut answer = Vec::new();
            read_answer(&mut connection, &mut answer)?;
            Ok(answer)
        };
        let answer = self.netns.run(exchange)?.with_context(|| format!("chromedriver: {method} {path}"))?;
        let mut answer: Value =
            serde_json::from_slice(&answer).with_context(|| format!("chromedriver: {method} {path}"))?;
        let value = answer["value"].take();
        let error = value["error"].as_str();
        ensure!(error.is_none(), "chromedriver: {path}: {}", value["message"].as_str().unwrap_or_default());
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The world ends what does not end by itself.
        if !self.session.is_empty() {
            let _ = self.ask("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
    }
}

/// Reads an answer up to its length: chromedriver does not close.
fn read_answer(connection: &mut TcpStream, body: &mut Vec<u8>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    match length {
        Some(length) => connection.take(length).read_to_end(body).map(drop),
        None => connection.read_to_end(body).map(drop),
    }
}
