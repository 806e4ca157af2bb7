// Runs one build of a declarative Jenkinsfile. jenkins-pipeline-unit loads the file, rejects steps that are not
// defined in this script, and records every call; `sh` really runs. Nothing is masked, so a secret in the log is
// visible to the tests.
//
// The first line of standard input is the build, as JSON. A line `abort` aborts the build as a user would.
import com.lesfurets.jenkins.unit.MockPipelineScript
import com.lesfurets.jenkins.unit.PipelineTestHelper
import groovy.json.JsonOutput
import groovy.json.JsonSlurper

import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.Paths
import java.nio.file.StandardCopyOption

class StepFailed extends RuntimeException {
    StepFailed(String message) { super(message) }
}

class CurrentBuild {
    static final List<String> WORSE = ['SUCCESS', 'UNSTABLE', 'FAILURE', 'ABORTED']
    long startTimeInMillis
    String description
    String result

    String getCurrentResult() { result ?: 'SUCCESS' }

    void worsenTo(String other) {
        if (WORSE.indexOf(other) > WORSE.indexOf(currentResult)) {
            result = other
        }
    }
}

class Assignments {
    final Map<String, String> made = [:]

    void setProperty(String name, Object value) { made[name] = value.toString() }

    Object getProperty(String name) {
        if (name == 'made') {
            return this.@made
        }
        // Groovy then looks the property up in the script.
        throw new MissingPropertyException(name, Assignments)
    }
}

class Build {
    final Map given
    final Path workspace
    final PipelineTestHelper helper
    final CurrentBuild currentBuild
    final Map<String, String> environment = [:]
    final Map<String, Object> params = [:]
    final Map<String, Closure> blocks = [:]
    final Map<String, Closure> conditions = [:]
    volatile boolean aborted
    volatile Process running

    Build(Map given) {
        this.given = given
        workspace = Paths.get(given.workspace)
        environment.putAll(given.environment)
        currentBuild = new CurrentBuild(startTimeInMillis: given.started)
        helper = new PipelineTestHelper(
            ['/'] as String[], '', MockPipelineScript, [:], this.class.classLoader, '/'
        )
        helper.init()
        define()
    }

    /** Runs the build and returns its result and the recorded calls. */
    Map run() {
        helper.runScript(given.jenkinsfile, new Binding(any: 'any', currentBuild: currentBuild, params: params))
        List calls = helper.callStack.collect { call ->
            List arguments = call.args.findAll { !(it instanceof Closure) }.collect { it instanceof Map ? it : "$it" }
            [name: call.methodName, arguments: arguments, depth: call.stackDepth]
        }
        [result: currentBuild.currentResult, description: currentBuild.description, calls: calls]
    }

    void abort() {
        aborted = true
        ProcessHandle shell = running?.toHandle()
        // Process.destroy would close the pipe and lose the client's last lines.
        shell?.descendants()?.forEach { it.destroy() }
        shell?.destroy()
    }

    private void define() {
        step('pipeline', [Closure]) { Closure body ->
            body()
            carryOut()
        }
        step('agent', [Object]) { }
        ['environment', 'stages', 'post'].each { name -> step(name, [Closure]) { blocks[name] = it } }
        ['triggers', 'parameters', 'options', 'steps', 'script'].each { name -> step(name, [Closure]) { it() } }
        step('cron', [String]) { }
        step('timeout', [Map]) { }
        step('buildDiscarder', [Object]) { }
        step('logRotator', [Map]) { it }
        step('disableConcurrentBuilds', []) { }
        step('timestamps', []) { }
        step('string', [Map]) { Map it ->
            String value = given.parameters.getOrDefault(it.name, it.defaultValue)
            params[it.name] = it.trim ? value.trim() : value
        }
        step('booleanParam', [Map]) { params[it.name] = given.parameters.getOrDefault(it.name, it.defaultValue) }
        step('choice', [Map]) { params[it.name] = given.parameters.getOrDefault(it.name, it.choices[0]) }
        step('stage', [String, Closure]) { String name, Closure body ->
            println "[Pipeline] stage ($name)"
            body()
        }
        step('sh', [String]) { sh(script: it) }
        step('sh', [Map]) { sh(it) }
        step('usernamePassword', [Map]) { it }
        step('withCredentials', [List, Closure]) { List bindings, Closure body -> withCredentials(bindings, body) }
        step('unstable', [Object]) {
            println "WARNING: $it"
            currentBuild.worsenTo('UNSTABLE')
        }
        step('error', [Object]) { throw new StepFailed(it.toString()) }
        step('archiveArtifacts', [Map]) { archive(it) }
        ['always', 'failure', 'aborted'].each { name -> step(name, [Closure]) { conditions[name] = it } }
    }

    private void step(String name, List<Class> types, Closure body) {
        helper.registerAllowedMethod(name, types, body)
    }

    private void carryOut() {
        Assignments assignments = new Assignments()
        blocks.environment.delegate = assignments
        blocks.environment.resolveStrategy = Closure.DELEGATE_FIRST
        blocks.environment()
        params.each { name, value -> environment[name] = value.toString() }
        environment.putAll(assignments.made)
        guarded('') { blocks.stages() }
        blocks.post()
        if (conditions.always) {
            guarded('always') { conditions.always() }
        }
        ['aborted': 'ABORTED', 'failure': 'FAILURE'].each { name, result ->
            if (conditions[name] && currentBuild.currentResult == result) {
                guarded(name) { conditions[name]() }
            }
        }
        println "Finished: $currentBuild.currentResult"
    }

    /** Runs the body; an exception makes the build fail, but does not prevent later post conditions. */
    private void guarded(String post, Closure body) {
        try {
            body()
        } catch (Exception failure) {
            println post ? "Error when executing $post post condition: $failure" : "ERROR: $failure.message"
            currentBuild.worsenTo(aborted ? 'ABORTED' : 'FAILURE')
        }
    }

    private Object sh(Map options) {
        if (options.keySet() - ['script', 'returnStatus']) {
            throw new StepFailed("unsupported options of sh: $options")
        }
        println '[Pipeline] sh'
        ProcessBuilder builder = new ProcessBuilder('sh', '-xe', '-c', options.script.toString())
        builder.directory(workspace.toFile()).redirectErrorStream(true)
        builder.environment().clear()
        builder.environment().putAll(environment)
        running = builder.start()
        running.outputStream.close()
        running.inputStream.eachLine { println it }
        int status = running.waitFor()
        running = null
        if (aborted) {
            throw new StepFailed('aborted')
        }
        if (options.returnStatus) {
            return status
        }
        if (status != 0) {
            throw new StepFailed("script returned exit code $status")
        }
        return null
    }

    private void withCredentials(List<Map> bindings, Closure body) {
        Map<String, String> outside = new HashMap<>(environment)
        bindings.each { Map binding ->
            Map known = given.credentials[binding.credentialsId]
            if (known == null) {
                throw new StepFailed("Could not find credentials entry with ID '$binding.credentialsId'")
            }
            environment[binding.usernameVariable] = known.username
            environment[binding.passwordVariable] = known.password
        }
        try {
            body()
        } finally {
            environment.clear()
            environment.putAll(outside)
        }
    }

    private void archive(Map options) {
        Path file = workspace.resolve(options.artifacts.toString())
        if (Files.exists(file)) {
            Files.copy(file, Paths.get(given.archive).resolve(file.fileName), StandardCopyOption.REPLACE_EXISTING)
        } else if (!options.allowEmptyArchive) {
            throw new StepFailed("No artifacts found that match the file pattern \"$options.artifacts\"")
        }
    }
}

BufferedReader input = System.in.newReader()
Map given = new JsonSlurper().parseText(input.readLine())
Build build = new Build(given)
Thread.startDaemon {
    if (input.readLine() == 'abort') {
        build.abort()
    }
}
Paths.get(given.ending).text = JsonOutput.toJson(build.run())
System.exit(0)
