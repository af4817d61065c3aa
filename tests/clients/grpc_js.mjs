// What grpc_js_server.mjs and grpc_js_streams.mjs share: grpc-js, without generated code. Messages are bytes.
import { createRequire } from "node:module";

// Where it is installed.
const require = createRequire(`${process.env.SLUICE_GRPC_JS}/package.json`);
export const grpc = require("@grpc/grpc-js");

const same = (bytes) => bytes;
const method = (name, requestStream, responseStream) => [
  name,
  {
    path: `/test.Echo/${name}`,
    requestStream,
    responseStream,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  },
];

export const Echo = Object.fromEntries([
  method("Unary", false, false),
  method("Fails", false, false),
  method("ServerStream", false, true),
  method("ClientStream", true, false),
  method("Both", true, true),
  method("Pause", true, false),
  method("Hang", false, false),
]);

export const sleep = (millis) => new Promise((resolve) => setTimeout(resolve, millis));

// Writes what it gets, no faster than it is taken.
export async function writeAll(stream, messages) {
  for (const message of messages) {
    if (!stream.write(message)) await new Promise((resolve) => stream.once("drain", resolve));
  }
  stream.end();
}
