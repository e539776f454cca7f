// Node's http module, or undici, told what to do as clients.py describes: node client.js http|undici BASE CONTENT
const { createHash } = require("node:crypto");
const { createReadStream, readFileSync } = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const readline = require("node:readline");

const [library, base, content] = process.argv.slice(2);
const undici = library === "undici" && require(path.join(__dirname, "../../../.build/programs/node_modules/undici"));
let agent;

function renew() {
  agent?.destroy?.();
  agent = undici ? new undici.Pool(base, { connections: 1, pipelining: 1 }) : new http.Agent({ keepAlive: true, maxSockets: 1 });
}

async function digest(status, stream) {
  const hash = createHash("sha256");
  let length = 0;
  for await (const data of stream) {
    hash.update(data);
    length += data.length;
  }
  return `${status} ${length} ${hash.digest("hex")}`;
}

function byHttp(method, target, file, chunked) {
  return new Promise((done, failed) => {
    const headers = file === undefined || chunked ? {} : { "content-length": Number(path.basename(file)) };
    const request = http.request(base + target, { method, headers, agent });
    request.on("error", failed);
    request.on("response", (response) => digest(response.statusCode, response).then(done, failed));
    if (file === undefined) request.end();
    else createReadStream(file).pipe(request);
  });
}

async function byUndici(method, target, file, chunked) {
  const body = file === undefined ? null : chunked ? createReadStream(file) : readFileSync(file);
  const reply = await agent.request({ method, path: target, body });
  return digest(reply.statusCode, reply.body);
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [method, target, size, framing] = line.split(" ");
    if (method === "new") {
      renew();
      continue;
    }
    const file = size === undefined ? undefined : `${content}/${size}`;
    try {
      console.log(await (undici ? byUndici : byHttp)(method, target, file, framing === "chunked"));
    } catch (error) {
      console.log("error", String(error.code ?? error).replaceAll(" ", "_"));
    }
  }
}

main();
