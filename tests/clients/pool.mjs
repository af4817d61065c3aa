// Node's http.Agent that keeps connections. pool.mjs <host> <port> <connections> <pause in seconds>
// Each round sends a request over every connection, then pauses. Ends when told `stop`, and says how it went.
import http from "node:http";

const [host, port, size, pause] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const agent = new http.Agent({ keepAlive: true, maxSockets: size });
let stopped = false;
process.stdin.once("data", () => (stopped = true));
let [ok, opened] = [0, 0];
const errors = [];

const request = () =>
  new Promise((done) => {
    const sent = http.get({ host, port, agent }, (response) => {
      response.resume();
      response.on("end", () => {
        if (response.statusCode === 200) ok += 1;
        else errors.push(String(response.statusCode));
        done();
      });
    });
    sent.on("socket", (socket) => (opened += socket.connecting ? 1 : 0));
    sent.on("error", (error) => {
      errors.push(String(error));
      done();
    });
  });

let first = true;
while (!stopped) {
  await Promise.all(Array.from({ length: size }, request));
  if (first) console.log("connected\n".repeat(size));
  first = false;
  await new Promise((done) => setTimeout(done, pause * 1000));
}
console.log(`ok=${ok} opened=${opened} failed=${errors.length} ${JSON.stringify(errors)} end`);
process.exit(0);
