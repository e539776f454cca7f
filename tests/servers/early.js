// Node.js. See tests/servers/__init__.py.
const fs = require('fs')
const http = require('http')
const [port, log] = process.argv.slice(2)

function answer(request, response) {
  if (request.url === '/early') {
    response.writeHead(401, { 'content-length': 2 }).end('no')
    return
  }
  fs.appendFileSync(log, `${request.method} ${request.url}\n`)
  request.resume()
  request.on('end', () => response.writeHead(200, { 'content-length': 8 }).end('EXECUTED'))
}

const server = http.createServer(answer)
server.on('checkContinue', (request, response) => {
  if (request.url !== '/early') response.writeContinue()
  answer(request, response)
})
server.listen(+port, '127.0.0.1')
