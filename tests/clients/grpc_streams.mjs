// gRPC over Node's own HTTP/2, the one that grpc-js speaks through: grpc_streams.mjs <host:port>
// Streams of very many small messages and calls that are given up, beside sixteen neighbours on one session.
import http2 from "node:http2";

const session = http2.connect(`http://${process.argv[2]}`);
const failures = [];
session.on("error", (error) => failures.push(`session: ${error}`));
session.on("goaway", (code) => failures.push(`GOAWAY ${code}`));
const sleep = (millis) => new Promise((resolve) => setTimeout(resolve, millis));

function message(text) {
  const body = Buffer.from(text);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(body.length, 1);
  return Buffer.concat([head, body]);
}

function open(method) {
  const stream = session.request({
    ":method": "POST",
    ":path": `/test.Echo/${method}`,
    "content-type": "application/grpc",
    te: "trailers",
  });
  // How many messages came, the last one of them, and the status: when the call is over.
  stream.over = new Promise((resolve) => {
    let rest = Buffer.alloc(0);
    const seen = { count: 0, last: "", status: null };
    const status = (headers) => (seen.status = headers["grpc-status"] ?? seen.status);
    stream.on("response", status);
    stream.on("trailers", status);
    stream.on("data", (chunk) => {
      rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      let at = 0;
      while (rest.length - at >= 5 && rest.length - at >= 5 + rest.readUInt32BE(at + 1)) {
        const end = at + 5 + rest.readUInt32BE(at + 1);
        seen.last = rest.toString("utf8", at + 5, end);
        seen.count += 1;
        stream.emit("message");
        at = end;
      }
      rest = rest.subarray(at);
    });
    stream.on("error", (error) => (seen.error = error.code));
    stream.on("close", () => resolve({ ...seen, reset: stream.rstCode }));
  });
  return stream;
}

async function call(method, text) {
  const stream = open(method);
  stream.end(message(text));
  return stream.over;
}

async function write(stream, count) {
  const small = message("x");
  for (let number = 0; number < count; number++) {
    if (!stream.write(small)) await new Promise((resolve) => stream.once("drain", resolve));
  }
  stream.end();
  return stream.over;
}

let stop = false;
const calls = Array(16).fill(0);
const neighbours = calls.map(async (_, number) => {
  while (!stop) {
    const { status, error } = await call("Unary", "x");
    if (status !== "0") return failures.push(`${number}: ${status} ${error}`);
    calls[number] += 1;
    await sleep(10);
  }
});

const seen = {};
seen.client_stream = (await write(open("ClientStream"), 5000)).last.split(":")[1];
seen.server_stream = (await call("ServerStream", "30000")).count;
seen.both = (await write(open("Both"), 3000)).count;
const long = open("Both");
let goesOn = true;
const broken = long.over.then((over) => goesOn && failures.push(`the long call: ${JSON.stringify(over)}`));
for (let round = 0; round < 25; round++) {
  const hanging = Array.from({ length: 60 }, () => {
    const stream = open("Hang");
    stream.end(message(""));
    return stream;
  });
  await sleep(20);
  hanging.forEach((stream) => stream.close(http2.constants.NGHTTP2_CANCEL));
  const answered = new Promise((resolve) => long.once("message", resolve));
  long.write(message("x"));
  await Promise.race([answered, broken]);
}
goesOn = false;
long.end();
seen.long = (await long.over).count;
stop = true;
await Promise.all(neighbours);
seen.failures = failures;
seen.enough = calls.every((count) => count > 20);
console.log(JSON.stringify(seen));
session.close();
