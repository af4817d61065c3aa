// What grpc_streams.py does, by grpc-js: grpc_js_streams.mjs <target> <rounds of 60 calls that are given up> <deadlines>
// Sixteen neighbours call meanwhile, eight of them over the same channel and eight over another, and must not notice anything.
import { Echo, grpc, sleep, writeAll } from "./grpc_js.mjs";

const PAUSE = 2;
const [target, rounds, deadlines] = process.argv.slice(2);
const Client = grpc.makeGenericClientConstructor(Echo, "test.Echo");
const open = () =>
  new Client(target, grpc.credentials.createInsecure(), {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_retries": 0,
  });
const [ours, other] = [open(), open()];
const within = (seconds) => ({ deadline: Date.now() + 1000 * seconds });

function call(client, method, message, seconds = 20) {
  let begun;
  const over = new Promise((resolve, reject) => {
    begun = client[method](message, new grpc.Metadata(), within(seconds), (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
  return { over, cancel: () => begun.cancel() };
}

function* small(count) {
  const message = Buffer.from("x");
  for (let number = 0; number < count; number++) yield message;
}

// Messages until the end; an error is one.
function count(stream, seen = 0) {
  return new Promise((resolve, reject) => {
    stream.on("data", () => (seen += 1));
    stream.on("error", reject);
    stream.on("status", ({ code }) => (code === grpc.status.OK ? resolve(seen) : reject(new Error(`status ${code}`))));
  });
}

function upload(method, messages, metadata = new grpc.Metadata()) {
  return new Promise((resolve, reject) => {
    const stream = ours[method](metadata, within(60), (error, answer) =>
      error ? reject(error) : resolve(answer.toString()),
    );
    writeAll(stream, messages);
  });
}

const failures = [];
const calls = Array(16).fill(0);
let stop = false;
const neighbours = calls.map(async (_, number) => {
  while (!stop) {
    try {
      await call(number < 8 ? ours : other, "Unary", Buffer.from("x")).over;
    } catch (error) {
      failures.push(`${number}: ${error.code} ${error.details}`);
      return;
    }
    calls[number] += 1;
    await sleep(10);
  }
});

const seen = {};

async function row(name, what) {
  const before = [...calls];
  try {
    seen[name] = await what();
  } catch (error) {
    failures.push(`${name}: ${error}`);
  }
  // All of them have gone on meanwhile, or do now.
  const deadline = Date.now() + 20_000;
  const stands = () => before.flatMap((count, number) => (calls[number] > count ? [] : [number]));
  while (stands().length > 0 && failures.length === 0 && Date.now() < deadline) await sleep(10);
  if (stands().length > 0) failures.push(`${name}: ${stands()} stand still`);
}

await row("unary", async () => {
  const answer = (await call(ours, "Unary", Buffer.alloc(3_000_000, "x")).over).length;
  return answer > 3_000_000;
});
await row("fails", () =>
  call(ours, "Fails", Buffer.alloc(0)).over.then(
    () => null,
    ({ code, details }) => [code, details],
  ),
);
await row("client_stream", async () => (await upload("ClientStream", small(20_000))).split(":")[1]);
await row("server_stream", () => count(ours.ServerStream(Buffer.from("30000"), new grpc.Metadata(), within(60))));
await row("both", () => {
  const stream = ours.Both(new grpc.Metadata(), within(60));
  const counted = count(stream);
  writeAll(stream, small(20_000));
  return counted;
});
await row("uploads", async () => {
  const metadata = new grpc.Metadata();
  metadata.set("pause", `${PAUSE}`);
  const parts = Array(40).fill(Buffer.alloc(10_000, "y"));
  const uploads = Array.from({ length: 12 }, () => upload("Pause", parts, metadata));
  return [...new Set(await Promise.all(uploads))];
});
await row("consumers", async () => {
  const consumers = Array.from({ length: 12 }, async () => {
    const stream = ours.ServerStream(Buffer.from("8000"), new grpc.Metadata(), within(60));
    await new Promise((resolve, reject) => {
      stream.once("data", resolve);
      stream.once("error", reject);
    });
    stream.pause();
    await sleep(1000 * PAUSE);
    const counted = count(stream, 1);
    stream.resume();
    return counted;
  });
  return [...new Set(await Promise.all(consumers))];
});
await row("given_up", async () => {
  const long = ours.Both(new grpc.Metadata(), within(60));
  let answered = () => {};
  long.on("data", () => answered());
  const wrong = new Promise((_, reject) => long.on("error", reject));
  for (let round = 0; round < rounds; round++) {
    const hanging = Array.from({ length: 60 }, () => call(ours, "Hang", Buffer.alloc(0)));
    const ended = Promise.allSettled(hanging.map(({ over }) => over));
    await sleep(20);
    hanging.forEach(({ cancel }) => cancel());
    await ended;
    const echoed = new Promise((resolve) => (answered = resolve));
    long.write(Buffer.from("x"));
    await Promise.race([echoed, wrong]);
  }
  long.end();
  await new Promise((resolve) => long.on("status", resolve));
  return "the long call goes on";
});
await row("deadlines", async () => {
  const hanging = Array.from({ length: deadlines }, () => call(ours, "Hang", Buffer.alloc(0), 1));
  const codes = {};
  for (const { reason } of await Promise.allSettled(hanging.map(({ over }) => over))) {
    const code = reason ? grpc.status[reason.code] : "OK";
    codes[code] = (codes[code] ?? 0) + 1;
  }
  return codes;
});
stop = true;
await Promise.all(neighbours);
seen.failures = failures;
seen.enough = calls.every((count) => count > 20);
console.log(JSON.stringify(seen));
ours.close();
other.close();
