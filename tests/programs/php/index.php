<?php
// PHP's built-in server. See tests/programs/calls.py; the environment variable CONTENT names the folder of bodies.
$words = explode('/', explode('?', $_SERVER['REQUEST_URI'])[0]);
if ($words[1] === 'early') {
    http_response_code(413);
    header('Content-Length: 2');
    echo 'no';
} elseif ($_SERVER['REQUEST_METHOD'] === 'POST') {
    if ($words[1] === 'slow') {
        usleep(300000);
    }
    $hash = hash_init('sha256');
    $length = 0;
    $body = fopen('php://input', 'rb');
    while (!feof($body)) {
        $data = fread($body, 65536);
        $length += strlen($data);
        hash_update($hash, $data);
    }
    $text = $length . ' ' . hash_final($hash) . "\n";
    header('Content-Length: ' . strlen($text));
    echo $text;
} else {
    $file = getenv('CONTENT') . '/' . $words[2];
    if ($words[1] === 'down') {
        header('Content-Length: ' . filesize($file));
    }
    readfile($file);
}
