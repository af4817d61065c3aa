// A service in the middle that passes on the ids of traces and nothing else, on Node's event loop:
// relay.mjs <port> <next host> <next port>
// Connections are kept open on both sides. What the next service answers is the answer.
import http from "node:http";

const [port, host, next] = process.argv.slice(2);
const PASSED_ON = ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"];
const agent = new http.Agent({ keepAlive: true });

const server = http.createServer((request, response) => {
  const headers = Object.fromEntries(PASSED_ON.filter((name) => name in request.headers).map((name) => [name, request.headers[name]]));
  http.get({ agent, host, port: next, path: "/", headers }, (answer) => {
    response.writeHead(answer.statusCode);
    answer.pipe(response);
  }).on("error", (error) => {
    response.writeHead(500);
    response.end(String(error));
  });
});
server.listen({ port, host: "0.0.0.0", backlog: 512 }, () => console.log("listening"));
