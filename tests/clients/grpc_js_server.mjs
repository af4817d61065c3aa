// A gRPC server by grpc-js, with the methods of grpc_server.py: grpc_js_server.mjs <port> <name>
import { Echo, grpc, sleep, writeAll } from "./grpc_js.mjs";

const [port, name] = process.argv.slice(2);
const own = (text) => Buffer.from(`${name}:${text}`);

function* numbers(count) {
  for (let number = 0; number < count; number++) yield own(number);
}

function sum(call, reply) {
  let count = 0;
  call.on("data", (message) => (count += message.length));
  call.on("end", () => reply(count));
}

const server = new grpc.Server();
server.addService(Echo, {
  Unary(call, reply) {
    const trailer = new grpc.Metadata();
    trailer.set("served-by", name);
    reply(null, Buffer.concat([own(""), call.request]), trailer);
  },
  Fails(_call, reply) {
    reply({ code: grpc.status.FAILED_PRECONDITION, details: "not today: 100 % sure" });
  },
  ServerStream(call) {
    writeAll(call, numbers(Number(call.request.toString())));
  },
  ClientStream(call, reply) {
    sum(call, (count) => reply(null, own(count)));
  },
  // What comes is not read faster than its echo is taken.
  Both(call) {
    call.on("data", (message) => {
      if (!call.write(Buffer.concat([own(""), message]))) {
        call.pause();
        call.once("drain", () => call.resume());
      }
    });
    call.on("end", () => call.end());
  },
  // Does not read for as long as the call says; then all of it.
  async Pause(call, reply) {
    await sleep(1000 * Number(call.metadata.get("pause")[0]));
    sum(call, (count) => reply(null, Buffer.from(`${count}`)));
  },
  // Until the client gives it up.
  Hang() {},
});
server.bindAsync(`[::]:${port}`, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  console.log("listening");
});
