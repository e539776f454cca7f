import java.io.IOException;
import java.io.InputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;

/** What all Java programs do with bodies. */
class Bodies {
    static String told(InputStream body, boolean slow) throws IOException, InterruptedException {
        MessageDigest digest = sha256();
        long length = 0;
        boolean paused = !slow;
        if (slow) Thread.sleep(300);
        byte[] buffer = new byte[65536];
        for (int got; (got = body.read(buffer)) >= 0; length += got) {
            digest.update(buffer, 0, got);
            if (!paused && length > 1_000_000) {
                paused = true;
                Thread.sleep(300);
            }
        }
        return length + " " + HexFormat.of().formatHex(digest.digest()) + "\n";
    }

    static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }
}
