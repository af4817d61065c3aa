// Node's fetch: a request, and several at once with bodies. fetch.mjs <base URL>
const base = process.argv[2];
const answer = await (await fetch(base, { headers: { "x-mse-tag": "gray" } })).json();
const bodies = Array.from({ length: 8 }, (_, number) => String(number).repeat(100_000));
const echoes = await Promise.all(
  bodies.map(async (body) => (await fetch(`${base}/echo`, { method: "POST", body })).text()),
);
console.log(JSON.stringify({ answer, echoed: echoes.every((echo, number) => echo === bodies[number]), status: 200 }));
