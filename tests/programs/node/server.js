// Node's http module. See tests/programs/calls.py: node server.js PORT CONTENT
const { createHash } = require("node:crypto");
const { createReadStream, statSync } = require("node:fs");
const http = require("node:http");

const [port, content] = process.argv.slice(2);
const pause = () => new Promise((done) => setTimeout(done, 300));

async function told(request, slow) {
  const hash = createHash("sha256");
  let length = 0;
  let paused = !slow;
  if (slow) await pause();
  for await (const data of request) {
    hash.update(data);
    length += data.length;
    if (!paused && length > 1_000_000) {
      paused = true;
      await pause();
    }
  }
  return `${length} ${hash.digest("hex")}\n`;
}

async function answer(request, response) {
  const [, kind, size] = request.url.split("?")[0].split("/");
  if (kind === "early") {
    response.writeHead(413, { "content-length": 2 }).end("no");
  } else if (request.method === "POST") {
    const text = await told(request, kind === "slow");
    response.writeHead(200, { "content-length": text.length }).end(text);
  } else {
    const file = `${content}/${size}`;
    response.writeHead(200, kind === "down" ? { "content-length": statSync(file).size } : {});
    createReadStream(file).pipe(response);
  }
}

http.createServer({ keepAliveTimeout: 60_000 }, answer).listen(Number(port), "127.0.0.1");
