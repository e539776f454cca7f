-- Every request asks for another order, so that no proxy lives on a memory of the last head.
-- The ids have nine digits: every head has the same length.
local head, tail

function init(args)
   math.randomseed(os.time())
   head = "GET /orders/"
   tail = " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\n\r\n"
end

function request()
   return head .. math.random(100000000, 999999999) .. tail
end
