import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ListConsumerGroupOffsetsResult;
import org.apache.kafka.clients.admin.ListConsumerGroupOffsetsSpec;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.ApiException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Runs jobs with the Java clients of Apache Kafka. A job is one line of JSON on stdin; each of its steps prints one line.
 * All jobs of a process run at the same time, each with clients of its own. The words are those of jobs.py.
 */
public class Client implements AutoCloseable {
    static final ObjectMapper JSON = new ObjectMapper();
    static final Duration PATIENCE = Duration.ofSeconds(40);
    static final Duration TICK = Duration.ofMillis(100);

    final Map<String, Object> common = new HashMap<>();
    final Map<String, KafkaProducer<String, String>> producers = new HashMap<>();
    final Map<String, KafkaConsumer<String, String>> consumers = new HashMap<>();
    Admin admin;

    public static void main(String[] arguments) throws Exception {
        ExecutorService pool = Executors.newCachedThreadPool();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JsonNode job = JSON.readTree(line);
            pool.submit(() -> run(job));
        }
        pool.shutdown();
        pool.awaitTermination(10, TimeUnit.MINUTES);
    }

    static void run(JsonNode job) {
        int number = 0;
        try (Client client = new Client(job)) {
            for (JsonNode step : job.get("steps")) {
                print(job, number++, "outcome", client.perform(step));
            }
        } catch (Throwable fault) {
            print(job, number, "fault", fault.toString());
        }
    }

    static void print(JsonNode job, int step, String kind, Object value) {
        ObjectNode line = JSON.createObjectNode();
        line.set("job", job.get("job"));
        line.put("step", step);
        line.set(kind, JSON.valueToTree(value));
        synchronized (System.out) {
            System.out.println(line);
            System.out.flush();
        }
    }

    Client(JsonNode job) {
        common.put("bootstrap.servers", job.get("bootstrap").asText());
        common.put("client.id", job.get("client_id").asText());
        if (job.hasNonNull("user")) {
            common.put("security.protocol", "SASL_PLAINTEXT");
            common.put("sasl.mechanism", "PLAIN");
            common.put("sasl.jaas.config", String.format(
                "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"%s\" password=\"%s\";",
                job.get("user").asText(), job.get("password").asText()));
        }
    }

    Object perform(JsonNode step) throws Exception {
        return switch (step.get("do").asText()) {
            case "produce" -> produce(step);
            case "transaction" -> transaction(step);
            case "fetch" -> fetch(step);
            case "consume" -> consume(step);
            case "rebalance" -> rebalance(step);
            case "list_topics" -> listTopics();
            case "describe_topics" -> describeTopics(step);
            case "create_topics" -> createTopics(step);
            case "delete_topics" -> deleteTopics(step);
            case "pause" -> pause(step);
            case "alter_configs" -> alterConfigs(step);
            case "describe_groups" -> describeGroups(step);
            case "describe_configs" -> describeConfigs(step);
            case "list_offsets" -> listOffsets(step);
            case "list_all_offsets" -> listAllOffsets(step);
            default -> throw new IllegalArgumentException(step.toString());
        };
    }

    Object pause(JsonNode step) throws InterruptedException {
        Thread.sleep(step.get("seconds").asLong() * 1000);
        return "ok";
    }

    // Producing.

    Object produce(JsonNode step) {
        boolean idempotent = step.path("idempotent").asBoolean(false);
        String acks = step.path("acks").asText("all");
        KafkaProducer<String, String> producer = producers.computeIfAbsent(
            idempotent + acks, key -> producer(Map.of("enable.idempotence", idempotent, "acks", acks)));
        return send(producer, step.get("records"));
    }

    /** What became of the records of each topic: "ok", or the name of the first error. */
    Map<String, String> send(KafkaProducer<String, String> producer, JsonNode records) {
        Map<String, List<Future<RecordMetadata>>> sent = new TreeMap<>();
        Map<String, String> outcomes = new TreeMap<>();
        records.properties().forEach(topic -> {
            outcomes.put(topic.getKey(), "ok");
            sent.put(topic.getKey(), new ArrayList<>());
            for (JsonNode value : topic.getValue()) {
                try {
                    sent.get(topic.getKey()).add(producer.send(new ProducerRecord<>(topic.getKey(), value.asText())));
                } catch (KafkaException error) {
                    outcomes.put(topic.getKey(), name(error));
                }
            }
        });
        producer.flush();
        sent.forEach((topic, futures) -> {
            for (Future<RecordMetadata> future : futures) {
                String outcome = outcome(future);
                if (!outcome.equals("ok") && outcomes.get(topic).equals("ok")) {
                    outcomes.put(topic, outcome);
                }
            }
        });
        return outcomes;
    }

    Object transaction(JsonNode step) {
        String id = step.get("name").asText();
        KafkaProducer<String, String> producer = producers.get(id);
        try {
            if (producer == null) {
                producer = producer(Map.of("transactional.id", id));
                producers.put(id, producer);
                producer.initTransactions();
            }
            producer.beginTransaction();
            String bad = "ok";
            for (Map.Entry<String, JsonNode> topic : step.get("records").properties()) {
                JsonNode records = JSON.createObjectNode().set(topic.getKey(), topic.getValue());
                bad = bad.equals("ok") ? send(producer, records).get(topic.getKey()) : bad;
            }
            if (bad.equals("ok") && step.hasNonNull("offsets")) {
                JsonNode offsets = step.get("offsets");
                TopicPartition read = new TopicPartition(offsets.get("topic").asText(), 0);
                try (KafkaConsumer<String, String> member = member(offsets.get("group").asText(), "classic")) {
                    producer.sendOffsetsToTransaction(
                        Map.of(read, new OffsetAndMetadata(offsets.get("offset").asLong())), member.groupMetadata());
                }
            }
            if (bad.equals("ok") && step.path("end").asText("commit").equals("commit")) {
                producer.commitTransaction();
            } else {
                producer.abortTransaction();
            }
            return bad;
        } catch (KafkaException error) {
            try {
                producer.abortTransaction();
            } catch (KafkaException | IllegalStateException fatal) {
                producers.remove(id);
                producer.close(Duration.ZERO);
            }
            return name(error);
        }
    }

    KafkaProducer<String, String> producer(Map<String, Object> more) {
        Map<String, Object> settings = new HashMap<>(common);
        settings.putAll(Map.of("delivery.timeout.ms", 15000, "request.timeout.ms", 10000, "max.block.ms", 15000));
        settings.putAll(more);
        return new KafkaProducer<>(properties(settings), new StringSerializer(), new StringSerializer());
    }

    // Consuming.

    Object fetch(JsonNode step) {
        KafkaConsumer<String, String> consumer = consumers.computeIfAbsent("", key -> consumer(Map.of("enable.auto.commit", false)));
        List<TopicPartition> partitions = new ArrayList<>();
        for (JsonNode topic : step.get("topics")) {
            partitions.add(new TopicPartition(topic.asText(), 0));
        }
        consumer.assign(partitions);
        consumer.seekToBeginning(partitions);
        return read(consumer, step);
    }

    Object consume(JsonNode step) {
        String group = step.get("group").asText();
        String protocol = step.path("protocol").asText("classic");
        if (step.path("auto").asBoolean(false)) {
            Map<String, Object> settings = Map.of("group.id", group, "group.protocol", protocol, "auto.commit.interval.ms", 100);
            try (KafkaConsumer<String, String> member = consumer(settings)) {
                member.subscribe(texts(step.get("topics")));
                return read(member, step);
            }
        }
        KafkaConsumer<String, String> consumer = consumers.computeIfAbsent(protocol + group, key -> member(group, protocol));
        consumer.subscribe(texts(step.get("topics")));
        ObjectNode outcome = read(consumer, step);
        try {
            consumer.commitSync(PATIENCE);
        } catch (KafkaException error) {
            outcome.withArray("errors").add("commit: " + name(error));
        }
        return outcome;
    }

    /** Read until as many records and errors have come as the step expects, and no longer than it says. */
    ObjectNode read(KafkaConsumer<String, String> consumer, JsonNode step) {
        int count = step.path("count").asInt(0);
        int wrong = step.path("errors").asInt(0);
        List<String> values = new ArrayList<>();
        TreeSet<String> errors = new TreeSet<>();
        long wait = step.hasNonNull("wait") ? Duration.ofSeconds(step.get("wait").asLong()).toNanos() : PATIENCE.toNanos();
        long deadline = System.nanoTime() + wait;
        while ((values.size() < count || errors.size() < wrong) && System.nanoTime() < deadline) {
            try {
                for (ConsumerRecord<String, String> record : consumer.poll(TICK)) {
                    values.add(record.value());
                }
            } catch (KafkaException error) {
                errors.add(name(error));
            }
        }
        Collections.sort(values);
        ObjectNode outcome = JSON.createObjectNode();
        outcome.set("values", JSON.valueToTree(values));
        outcome.set("errors", JSON.valueToTree(errors));
        return outcome;
    }

    /** How many partitions each member has: of one, of two, and of the one that stays. */
    Object rebalance(JsonNode step) {
        String group = step.get("group").asText();
        String protocol = step.path("protocol").asText("classic");
        List<String> topics = texts(step.get("topics"));
        int all = step.get("partitions").asInt();
        List<List<Integer>> seen = new ArrayList<>();
        try (KafkaConsumer<String, String> first = member(group, protocol)) {
            first.subscribe(topics);
            seen.add(shares(List.of(first), List.of(all)));
            try (KafkaConsumer<String, String> second = member(group, protocol)) {
                second.subscribe(topics);
                seen.add(shares(List.of(first, second), List.of(all / 2, all - all / 2)));
            }
            seen.add(shares(List.of(first), List.of(all)));
        }
        return seen;
    }

    List<Integer> shares(List<KafkaConsumer<String, String>> members, List<Integer> wanted) {
        List<Integer> shares = List.of();
        long deadline = System.nanoTime() + PATIENCE.toNanos();
        while (!shares.equals(wanted) && System.nanoTime() < deadline) {
            members.forEach(member -> member.poll(TICK));
            shares = members.stream().map(member -> member.assignment().size()).collect(Collectors.toList());
        }
        return shares;
    }

    KafkaConsumer<String, String> member(String group, String protocol) {
        Map<String, Object> settings = new HashMap<>(Map.of("group.id", group, "group.protocol", protocol, "enable.auto.commit", false));
        if (protocol.equals("classic")) {
            settings.put("heartbeat.interval.ms", 300);
        }
        return consumer(settings);
    }

    KafkaConsumer<String, String> consumer(Map<String, Object> more) {
        Map<String, Object> settings = new HashMap<>(common);
        settings.putAll(Map.of("auto.offset.reset", "earliest", "isolation.level", "read_committed", "allow.auto.create.topics", false));
        settings.putAll(more);
        return new KafkaConsumer<>(properties(settings), new StringDeserializer(), new StringDeserializer());
    }

    // Administration.

    Object listTopics() {
        try {
            return new TreeSet<>(admin().listTopics().names().get());
        } catch (ExecutionException | InterruptedException error) {
            return name(error);
        }
    }

    Object describeTopics(JsonNode step) {
        Map<String, Object> outcomes = new TreeMap<>();
        admin().describeTopics(texts(step.get("topics"))).topicNameValues().forEach((topic, future) -> {
            try {
                outcomes.put(topic, future.get().partitions().size());
            } catch (ExecutionException | InterruptedException error) {
                outcomes.put(topic, name(error));
            }
        });
        return outcomes;
    }

    Object createTopics(JsonNode step) {
        List<NewTopic> topics = new ArrayList<>();
        step.get("topics").properties().forEach(
            topic -> topics.add(new NewTopic(topic.getKey(), topic.getValue().asInt(), (short) 1)));
        return outcomes(admin().createTopics(topics).values());
    }

    Object deleteTopics(JsonNode step) {
        return outcomes(admin().deleteTopics(texts(step.get("topics"))).topicNameValues());
    }

    Object alterConfigs(JsonNode step) {
        Map<ConfigResource, Collection<AlterConfigOp>> wanted = new HashMap<>();
        for (JsonNode topic : step.get("topics")) {
            ConfigEntry setting = new ConfigEntry("retention.ms", "86400000");
            wanted.put(new ConfigResource(ConfigResource.Type.TOPIC, topic.asText()),
                List.of(new AlterConfigOp(setting, AlterConfigOp.OpType.SET)));
        }
        Map<String, KafkaFuture<Void>> futures = new HashMap<>();
        admin().incrementalAlterConfigs(wanted).values().forEach((resource, future) -> futures.put(resource.name(), future));
        return outcomes(futures);
    }

    Object describeGroups(JsonNode step) {
        return outcomes(admin().describeConsumerGroups(texts(step.get("groups"))).describedGroups());
    }

    Object describeConfigs(JsonNode step) {
        List<ConfigResource> topics = texts(step.get("topics")).stream()
            .map(topic -> new ConfigResource(ConfigResource.Type.TOPIC, topic)).collect(Collectors.toList());
        Map<String, String> outcomes = new TreeMap<>();
        admin().describeConfigs(topics).values().forEach((topic, future) -> outcomes.put(topic.name(), outcome(future)));
        return outcomes;
    }

    /** The group's offsets in the topics, without those that it is refused, as the client leaves them out. */
    Object listOffsets(JsonNode step) {
        String group = step.get("group").asText();
        List<TopicPartition> partitions = texts(step.get("topics")).stream()
            .map(topic -> new TopicPartition(topic, 0)).collect(Collectors.toList());
        Map<String, Long> offsets = new TreeMap<>();
        try {
            admin().listConsumerGroupOffsets(Map.of(group, new ListConsumerGroupOffsetsSpec().topicPartitions(partitions)))
                .partitionsToOffsetAndMetadata(group).get()
                .forEach((partition, offset) -> offsets.put(partition.topic(), offset.offset()));
            return offsets;
        } catch (ExecutionException | InterruptedException error) {
            return name(error);
        }
    }

    /** Of each group in how many topics it has offsets, or an error; all groups in one request. */
    Object listAllOffsets(JsonNode step) {
        Map<String, ListConsumerGroupOffsetsSpec> asked = new TreeMap<>();
        texts(step.get("groups")).forEach(group -> asked.put(group, new ListConsumerGroupOffsetsSpec()));
        ListConsumerGroupOffsetsResult result = admin().listConsumerGroupOffsets(asked);
        Map<String, Object> outcomes = new TreeMap<>();
        for (String group : asked.keySet()) {
            try {
                outcomes.put(group, result.partitionsToOffsetAndMetadata(group).get().size());
            } catch (ExecutionException | InterruptedException error) {
                outcomes.put(group, name(error));
            }
        }
        return outcomes;
    }

    Admin admin() {
        if (admin == null) {
            Map<String, Object> settings = new HashMap<>(common);
            settings.putAll(Map.of("default.api.timeout.ms", 15000, "request.timeout.ms", 10000));
            admin = Admin.create(properties(settings));
        }
        return admin;
    }

    // Words.

    static Map<String, String> outcomes(Map<String, ? extends KafkaFuture<?>> futures) {
        Map<String, String> outcomes = new TreeMap<>();
        futures.forEach((key, future) -> outcomes.put(key, outcome(future)));
        return outcomes;
    }

    static String outcome(Future<?> future) {
        try {
            future.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
            return "ok";
        } catch (Exception error) {
            return name(error);
        }
    }

    /** TopicAuthorization, for a TopicAuthorizationException that may be wrapped in others. */
    static String name(Throwable error) {
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
            if (cause instanceof ApiException) {
                return cause.getClass().getSimpleName().replaceFirst("Exception$", "");
            }
        }
        return error.toString();
    }

    static List<String> texts(JsonNode list) {
        List<String> texts = new ArrayList<>();
        list.forEach(text -> texts.add(text.asText()));
        return texts;
    }

    static Properties properties(Map<String, Object> settings) {
        Properties properties = new Properties();
        settings.forEach((key, value) -> properties.put(key, String.valueOf(value)));
        return properties;
    }

    @Override
    public void close() {
        producers.values().forEach(producer -> producer.close(Duration.ofSeconds(2)));
        consumers.values().forEach(KafkaConsumer::close);
        if (admin != null) {
            admin.close(Duration.ofSeconds(2));
        }
    }
}
