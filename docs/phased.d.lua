---@meta phased
-- Types of phased's Lua for LuaLS. Written by `phased init`; changes are lost.

---The only global; everything else comes by require.
phased = {}

---A handle of a secret: resolved when a step uses it, never text.
---@class phased.Secret

---A plugin's value called with its options.
---@class phased.Bound

---The name of a secret in the secrets directory.
---@param name string
---@return phased.Secret
function phased.secret(name) end

---This server itself as a host: its commands run as the project's own user.
---@type phased.host
phased.localhost = {}

---The repository that is deployed.
---@class phased.source
---@field git string The URL as git takes it: https://, ssh://, user@host:path or file:///.
---@field branch string The branch that is deployed.
---@field tags? string|string[] Pushed tags that match start runs too, and may be started although they are not on the branch: "v*".
---@field poll? string How often the branch's head and tags are asked for, beside webhooks; without it only at start.
---@field webhook? phased.Secret|phased.Secret[] The secret that signs webhooks, or two during a rotation; without it the project has no webhook endpoint.
---@field user? string User for https://, where the forge wants one beside the token.
---@field token? phased.Secret Password or token for https://.
---@field key? phased.Secret Private key for ssh:// and user@host:path.
---@field known_hosts? string The known_hosts file for ssh:// and user@host:path.

---A named group of tests, run in the run's own checkout.
---@class phased.stage
---@field [1] string What the stage is called.
---@field setup? fun(run: phased.Run) Called before run, to make what the tests need.
---@field run fun(run: phased.Run) The tests; an error fails the run.
---@field cleanup? fun(run: phased.Run) Always called in the end: pass, fail, stop or crash.
---@field timeout? string The limit of each of these calls as a whole. Default: "1h".

---A bastion. All hosts behind it share one session to it.
---@class phased.jump
---@field address string Where its sshd listens.
---@field port? integer The port of its sshd. Default: 22.
---@field user? string The user to log in as; that of the hosts when absent.
---@field key? phased.Secret The private key to log in with; that of the hosts when absent.
---@field known_hosts? string The known_hosts file its key is held against; that of the hosts when absent.
---@field host_keys? "pin"|"ca"|"tofu"|string[] By what it is known to be itself, as for a host; the policy of the hosts when absent.
---@field max_handshakes? integer Hosts that are connected to through it at the same moment, until they have let us in; further ones wait. Default: 8.

---A deploy target, as a project writes it and a discovery returns it.
---@class phased.host
---@field address string Where its sshd listens.
---@field id? string Its identity, by its provider; the address when absent.
---@field name? string What people call it, and its place in the order of a rollout; the id when absent.
---@field zone? string Its failure domain.
---@field state? "starting"|"running"|"stopped"|"terminated" What its source says of it; only a running one is deployed to. Default: "running".
---@field reason? string Why it is in that state.
---@field labels? table<string, string|integer> Free facts, for the pipeline to read.
---@field user? string The user to log in as.
---@field port? integer The port of its sshd, or of its own daemon.
---@field transport? "ssh"|"local" local: it is this server itself, and its commands run as the project's own user; phased.localhost is such a host. Default: "ssh".
---@field receiver_key? string Of its own daemon, where that is sent signals: what phased keys show prints there.
---@field key? phased.Secret The private key to log in with.
---@field known_hosts? string The known_hosts file its key is held against.
---@field host_keys? "pin"|"ca"|"tofu"|string[] By what it is known to be itself, as in ssh; or its keys: { "SHA256:..." } or { "ssh-ed25519 AAAA..." }, any of them.
---@field jump? string|(string|phased.jump)[]|phased.jump The bastion on the way, or several in their order; "none" where that of ssh is not meant.
---@field connect_timeout? string Connecting, key exchange and login together.
---@field path? string PATH of its commands.
---@field base? string Where phased keeps its files on the host.

---How to reach the hosts of an environment.
---@class phased.ssh
---@field user? string The user to log in as; the daemon's own user name when absent.
---@field port? integer The port of sshd. Default: 22.
---@field key? phased.Secret The private key to log in with.
---@field known_hosts? string The known_hosts file that host keys are held against.
---@field host_keys? "pin"|"ca"|"tofu" By what a host is known to be itself: pin: its key is in known_hosts; ca: it has a certificate of an authority in known_hosts (@cert-authority); tofu: the first key that its id shows is kept, and every other one refused. Default: "pin".
---@field jump? string|(string|phased.jump)[]|phased.jump The bastion on the way, "[user@]host[:port]", or several in their order; what a bastion's table does not say is as for the hosts.
---@field connect_timeout? string Connecting, key exchange and login together. Default: "10s".
---@field path? string PATH of commands on the hosts.
---@field base? string Where phased keeps its files on a host. Default: /var/tmp/phased-<uid>.
---@field max_sessions? integer Sessions to these hosts at the same moment, whatever they are for; further ones wait. Without it only [limits] sessions of the daemon counts.

---Which hosts come first.
---@class phased.canary
---@field labels table<string, string|integer> Those that have all of these labels.

---How a deployment goes over its hosts. Sizes are rounded down to at least 1, budgets (max_*) down and may be 0, floors (min_*) up.
---@class phased.rollout
---@field canary? integer|string|phased.canary Hosts that come first and are watched by themselves: so many of the first by name, or { labels = {...} }; 0 for none. Default: 1.
---@field waves? integer|string|(integer|string)[] A list is how many hosts have it after each wave, the canary included, and ends in "100%"; a single value is the size of every wave. Default: { "100%" }.
---@field max_parallel? integer Hosts updated at the same moment. Default: 1.
---@field stagger? string At least so long between the beginnings of two hosts. Default: "0s".
---@field bake_time? string How long it is watched after the canary and after every wave; only watched time counts. With when = "signal" it is "0s": whoever sends the signal watches. Default: "2m".
---@field max_bake? string A bake from which nothing can be concluded is given up after so long; three times bake_time when absent.
---@field max_failures? integer|string Failed hosts that do not stop the rollout; it stops when this is exceeded. Default: 0.
---@field max_failures_per_wave? integer|string The same within one wave.
---@field max_unreachable? integer|string Unreachable hosts that do not stop the rollout; it stops when this is exceeded. Default: 0.
---@field min_healthy? integer|string No host is taken if fewer than these would serve then; those healthy at plan time less max_parallel, max_failures and max_unreachable when absent.
---@field progress_deadline? string Nobody newly healthy for so long is a failure; when absent the limits of each call and of health are all.
---@field pause_timeout? string A pause that nobody ends is halted after so long. Default: "24h".
---@field rollback_parallel? integer Hosts that go back at the same moment; max_parallel when absent.
---@field max_shrink? string A list of hosts that has lost more than this since the last deployment stops it. Default: "30%".
---@field zones? boolean Hosts of two zones are never updated at the same moment, forwards or back. Default: false.
---@field on_failure? "rollback"|"halt"|"pause" What happens when it fails after a host was touched. Default: "rollback".
---@field on_inconclusive? "rollback"|"halt"|"promote" What happens when a bake ends without a verdict. Default: "rollback".

---Where a host tells the version it runs: the release's id, its commit, or at least 7 digits of that.
---@class phased.version
---@field http? string GET, asked as health.http is.
---@field command? string Shell text on the host that prints the version.
---@field json? string The answer is JSON, and the version is there: "revision" or "build.revision". Without it the answer is the version.

---When a host is healthy: every check good, without a break, for min_healthy_time, before healthy_deadline.
---@class phased.health
---@field http? string|string[] GET; good is a status from 200 to 299. ":8080/path" is the host's own loopback, asked through its SSH session; a full URL is asked from here.
---@field tcp? string|string[] Something listens there, as the host sees it.
---@field command? string|string[] Shell text on the host; good is exit code 0.
---@field service? string|string[] A systemd unit, shop or shop.service: good is active. One that ends and is restarted by systemd while it is watched (NRestarts) is unhealthy at once.
---@field container? string|string[] A container of docker or podman: good is running, and healthy where it has a health check of its own. One that ends and is restarted while it is watched is unhealthy at once.
---@field version? phased.version The version that the host reports: good is the release that was deployed.
---@field min_healthy_time? string How long all checks must be good without a break. Default: "10s".
---@field healthy_deadline? string Not healthy by then is a failed host. Default: "2m".
---@field interval? string Between looks. Default: "1s".
---@field timeout? string Of one look. Default: "5s".

---What a bad value is; every other one is good unless success says otherwise. A probe's own above and below say the same.
---@class phased.failure
---@field above? number The value is more than this.
---@field below? number The value is less than this.
---@field between? number[] The value is from the first to the second of these, both included.

---What a good value is; every other one is bad unless failure says otherwise.
---@class phased.success
---@field above? number The value is more than this.
---@field below? number The value is less than this.
---@field between? number[] The value is from the first to the second of these, both included.

---A measurement that says a deployment is bad, who is told, and what happens then. Judged as in Argo Rollouts' analysis: see docs/alarms.md.
---@class phased.alarm
---@field [1] string What people call it, as in "error rate".
---@field cause phased.Bound What is measured.
---@field alert phased.Bound Who is told when it fires.
---@field action "rollback"|"halt"|"pause"|"none" What happens to the deployment when it fires.
---@field failure? phased.failure When a measurement is bad.
---@field success? phased.success When a measurement is good.
---@field lasting? string A bad value counts once it has been there for so long without a good one in between.
---@field interval? string Between measurements. Default: "30s".
---@field timeout? string The limit of one measurement. Default: "10s".
---@field count? integer After so many measurements it has passed; without it, when the bake is over.
---@field failure_limit? integer Bad measurements that do not make it fire; it fires when this is exceeded. Default: 0.
---@field inconclusive_limit? integer Measurements that are neither good nor bad and do not make it inconclusive. Default: 0.
---@field consecutive_error_limit? integer Errors and measurements without data, in a row, that do not make it inconclusive. Default: 4.
---@field consecutive_success_limit? integer So many good measurements in a row pass before the end.
---@field min_samples? integer With fewer values it is inconclusive. Default: 1.
---@field compare? "baseline" Also measures as many hosts that still run what was live before, and fires when the new release is worse by more than chance explains (Mann-Whitney U test).
---@field worse? "higher"|"lower" Which values are worse in a comparison; higher when absent.
---@field tolerance? string A difference in a comparison of so much of the baseline is none; "10%" when absent.

---Runs of which tags enter an environment by themselves.
---@class phased.when
---@field tag string|string[] As in "v*"; source.tags says which pushed tags start runs.

---A window in which nothing new is deployed: { from = "fri 16:00", to = "mon 08:00" } each week, { days = "mon-fri", from = "22:00", to = "06:00" } on each of these days, { days = "sat,sun" } all day, { from = "2026-12-20", to = "2027-01-02" } once.
---@class phased.freeze
---@field days? string The days on which it begins: "mon-fri", "sat,sun"; with times of day only.
---@field from? string "16:00", "fri 16:00", "2026-12-20" or "2026-12-20 16:00".
---@field to? string The same kind. Not later than from on the same day is on the next; a date alone is the whole of that day.
---@field zone string Whose clock: "Europe/Berlin", "UTC".
---@field reason? string Why, for those who wait.

---How the daemons of an environment's hosts are spoken to.
---@class phased.signal
---@field key phased.Secret The private key that signs; phased keys make makes one. Receivers accept its public half in [signals] of their configuration.
---@field receivers? string A file with the public keys of the receivers, HOST-ID ssh-ed25519 AAAA... a line; a host's own receiver_key wins.
---@field port? integer Where the daemons listen; a host's own port wins. Default: 7427.
---@field tls? boolean true: by https, where they speak it, or a proxy in front of them. Signals and answers are signed either way. Default: false.

---A named set of hosts with its own rules.
---@class phased.environment
---@field [1] string What the environment is called.
---@field hosts phased.Bound|(string|phased.Bound|phased.host)[] Its hosts: a list of addresses, host tables and discoveries, or one discovery.
---@field ssh? phased.ssh How to reach its hosts; a host's own values win.
---@field rollout? phased.rollout How many hosts at once, and how many may fail.
---@field deploy fun(host: phased.Host, release: phased.Release) Puts the release on one host.
---@field health "none"|phased.health When a host is healthy after its deploy; "none" on purpose.
---@field verify? fun(run: phased.Run, deployment: phased.Deployment) Tests in production, after the last host; an error is a bad deployment.
---@field alarms? phased.alarm[] What is watched while a deployment goes on; each with cause, alert and action.
---@field timeout? string The limit of each of its calls as a whole. Default: "1h".
---@field when? "push"|"manual"|"signal"|phased.when Which runs enter it by themselves: all, none, those that another daemon asks for by a signal, or those of tags. Where every environment says "signal" the project may have no test: what comes was tested by its sender. A run stops at the first environment that nothing opens for it; `phased start PROJECT ENVIRONMENT` opens it. Default: "push".
---@field freeze? phased.freeze[] Times in which nothing new is deployed there; rollbacks and late hosts are.
---@field group? string Environments of one group, also of other projects, are deployed to one at a time.
---@field prepare? fun(host: phased.Host, release: phased.Release) Every host, 64 at a time, before anything is switched; it must not touch what serves. Also on the way back.
---@field before? fun(deployment: phased.Deployment) Once, after every prepare: the place of migrations.
---@field before_wave? fun(wave: phased.Wave) Before each wave.
---@field drain? fun(host: phased.Host) Takes one host out of service, before its deploy. Also on the way back.
---@field undrain? fun(host: phased.Host) Takes one host into service again, once it is healthy. Also on the way back.
---@field after_wave? fun(wave: phased.Wave) After each wave.
---@field after? fun(deployment: phased.Deployment) Once, when every host has it and it is verified.
---@field rollback_safe? fun(release: phased.Release): boolean, string? Asked before anything is touched: whether a failure may go back to the known-good release, and if not, why.
---@field transport? "ssh"|"signal" How its hosts are reached: by SSH, or by signals to a daemon of each host's own, which deploys by its own project file. Then there is no ssh and no health (each receiver looks at what it deploys, and is asked), and deploy is host:signal() when absent. Default: "ssh".
---@field signal? phased.signal With transport = "signal": how the daemons of its hosts are spoken to.

---Who is told, bad and good ends apart.
---@class phased.notify
---@field bad phased.Bound|phased.Bound[] For every bad end, and for recovery from one.
---@field good? phased.Bound|phased.Bound[] For good ends.

---One deployable system; the file in projects/ returns it, and the file's name is the project's name.
---@class phased.project
---@field source phased.source Where commits come from.
---@field queue? "latest"|"all" What happens to pushes while one is being tested: a newer one supersedes those still queued, or every one is a run. Default: "latest".
---@field test phased.stage[] Stages of tests on this server, in order; the first failure ends the run and nothing is deployed.
---@field environments phased.environment[] Environments in order; each is deployed to only if the one before is good.
---@field notify phased.Bound|phased.Bound[]|phased.notify Who is told: one alert or a list of them for every bad end and recovery, or { bad = ..., good = ... }.

---One deployable system; the file in projects/ returns it, and the file's name is the project's name.
---@param description phased.project
---@return table
function phased.project(description) end

---One option of a plugin: { "text", required = true, doc = "..." }.
---@class phased.option
---@field [1] "text"|"secret"|"text_or_secret"|"url"|"url_or_secret"|"path"|"duration"|"integer"|"number"|"boolean"|"percentage"|"list"|"map"|"data" What it must be; list and map hold texts or secrets.
---@field required? boolean Its absence is an error. Default: false.
---@field position? integer It is given without a name, in this place; a list takes all values from there on.
---@field default? any Its value when absent.
---@field values? string[] The only values it may have.
---@field doc? string One sentence for people.

---Finds hosts; calling the value with its options gives what an environment takes as hosts.
---@class phased.discovery
---@field name string What the plugin is called in messages.
---@field options? table<string, phased.option> The options it takes, by name; others are refused.
---@field hosts fun(options: table, about: phased.Asking): phased.host[] Returns the hosts as they are now; those it says are stopped or terminated are out for that reason.

---Finds hosts; calling the value with its options gives what an environment takes as hosts.
---@param description phased.discovery
---@return fun(options?: table|string): phased.Bound
function phased.discovery(description) end

---Tells people; calling the value with its options gives what a project takes as notify.
---@class phased.alert
---@field name string What the plugin is called in messages.
---@field options? table<string, phased.option> The options it takes, by name; others are refused.
---@field send fun(options: table, message: phased.Message) Sends one message; an error makes phased try again later.

---Tells people; calling the value with its options gives what a project takes as notify.
---@param description phased.alert
---@return fun(options?: table|string): phased.Bound
function phased.alert(description) end

---Measures something; calling the value with its options gives what an alarm takes as its cause. Options of it that are called above, below (numbers) and lasting (a duration) say when a value is bad.
---@class phased.probe
---@field name string What the plugin is called in messages.
---@field options? table<string, phased.option> The options it takes, by name; others are refused.
---@field measure fun(options: table, about: phased.About): number|phased.Measured|nil Takes one measurement: a number, { value = ..., message = ... }, or nil where there is no data.

---Measures something; calling the value with its options gives what an alarm takes as its cause. Options of it that are called above, below (numbers) and lasting (a duration) say when a value is bad.
---@param description phased.probe
---@return fun(options?: table|string): phased.Bound
function phased.probe(description) end

---Makes one HTTP request from here; redirects are not followed.
---@class phased.http
---@field [1] string|phased.Secret Where to.
---@field method? "GET"|"HEAD"|"POST"|"PUT"|"PATCH"|"DELETE" The method. Default: "GET".
---@field headers? table<string, string|integer|phased.Secret> Further headers.
---@field bearer? phased.Secret Sent as Authorization: Bearer.
---@field body? string|phased.Secret The body as it is.
---@field json? any The body as data, sent as JSON.
---@field form? table<string, string|integer|phased.Secret> The body as the fields of a form.
---@field timeout? string The limit of each exchange. Default: "30s".
---@field retries? integer How often it is tried again when the other side cannot be reached, is overloaded (429, 503) or fails (500, 502, 504): after 1s, 2s, 4s, or when its Retry-After says. Default: 0.
---@field check? boolean false: a status outside 200 to 299 is returned, not raised. Default: true.

---Makes one HTTP request from here; redirects are not followed.
---phased.http { options.url, method = "POST", json = { text = message.title } }
---@param what string|phased.Secret|phased.http
---@return phased.Answer
function phased.http(what) end

phased.json = {}

---Reads JSON.
---local rows = phased.json.decode(phased.read "/etc/phased/hosts.json")
---@param what string
---@return any
function phased.json.decode(what) end

---Writes JSON.
---local text = phased.json.encode(message)
---@param what any
---@return string
function phased.json.encode(what) end

phased.csv = {}

---Reads CSV whose first line names the columns.
---local rows = phased.csv.decode(phased.read "/etc/phased/hosts.csv")
---@param what string
---@return table<string, string>[]
function phased.csv.decode(what) end

---Adds a line to the daemon's log.
---phased.log "3 hosts found"
---@param what string|integer
function phased.log(what) end

---Reads a file of this machine, at most 16 MiB.
---local text = phased.read "/etc/phased/hosts.json"
---@param what string
---@return string
function phased.read(what) end

---Runs a program on this machine as the project's own user, without a shell.
---@class phased.exec
---@field [integer] string|integer The program and its arguments.
---@field argv? (string|integer)[] The program and its arguments.
---@field stdin? string|phased.Secret Its standard input.
---@field env? table<string, string|integer|phased.Secret> Further environment variables.
---@field timeout? string The limit of the command. Default: "1m".
---@field check? boolean false: a failure is returned, not raised. Default: true.

---Runs a program on this machine as the project's own user, without a shell.
---phased.exec { argv = options.argv, stdin = phased.json.encode(message) }
---@param what phased.exec
---@return phased.Result
function phased.exec(what) end

---Looks a name up, every time anew; a name without such records gives an empty list.
---@class phased.dns
---@field [1] string The name, in full.
---@field type? "A"|"AAAA"|"SRV" Which records. Default: "A".
---@field server? string Whom to ask, "10.0.0.2:53"; the machine's resolvers when absent.
---@field timeout? string The limit of the lookup. Default: "10s".

---Looks a name up, every time anew; a name without such records gives an empty list.
---for _, record in ipairs(phased.dns { "_ssh._tcp.web.example.com", type = "SRV" }) do end
---@param what string|phased.dns
---@return phased.Record[]
function phased.dns(what) end

---Lists instances of Amazon EC2, in whatever state, all pages of all regions.
---@class phased.ec2_instances
---@field access_key_id? string|phased.Secret With secret_access_key; else credentials are found as Amazon's tools find them.
---@field secret_access_key? phased.Secret With access_key_id.
---@field session_token? phased.Secret Of temporary keys.
---@field profile? string A profile of the shared files.
---@field role? string A role to assume.
---@field external_id? string What the role's owner asks for.
---@field endpoint? string Another endpoint than Amazon's; AWS_ENDPOINT_URL says the same.
---@field regions string|string[] Which regions, asked side by side.
---@field filters? table<string, string|string[]> As DescribeInstances takes them: { ["tag:role"] = "web" }.
---@field page_size? integer Reservations in one answer. Default: 1000.
---@field timeout? string The limit of all of it. Default: "2m".

---Lists instances of Amazon EC2, in whatever state, all pages of all regions.
---for _, instance in ipairs(phased.ec2_instances { regions = "eu-west-1" }) do end
---@param what phased.ec2_instances
---@return phased.Instance[]
function phased.ec2_instances(what) end

---Reads the host keys that instances of Amazon EC2 have printed on their consoles (cloud-init does, at the first boot): id to keys, without those that have printed none yet.
---@class phased.ec2_host_keys
---@field access_key_id? string|phased.Secret With secret_access_key; else credentials are found as Amazon's tools find them.
---@field secret_access_key? phased.Secret With access_key_id.
---@field session_token? phased.Secret Of temporary keys.
---@field profile? string A profile of the shared files.
---@field role? string A role to assume.
---@field external_id? string What the role's owner asks for.
---@field endpoint? string Another endpoint than Amazon's; AWS_ENDPOINT_URL says the same.
---@field instances table<string, string> Which: id to region. One call of GetConsoleOutput each, four at a time.
---@field timeout? string The limit of all of it. Default: "2m".

---Reads the host keys that instances of Amazon EC2 have printed on their consoles (cloud-init does, at the first boot): id to keys, without those that have printed none yet.
---local keys = phased.ec2_host_keys { instances = { ["i-0ab1"] = "eu-west-1" } }
---@param what phased.ec2_host_keys
---@return table<string, string[]>
function phased.ec2_host_keys(what) end

---Signs a JSON Web Token (RS256) with a key that stays outside Lua.
---@class phased.jwt
---@field key phased.Secret A private RSA key in PEM, or a JSON key file with one as private_key.
---@field claims? any The claims; iat and exp are added.
---@field from_key? table<string, string> Claims taken from the JSON key file: { iss = "client_email" }.
---@field header? any Further fields of the header.
---@field lifetime? string How long it is good. Default: "1h".

---Signs a JSON Web Token (RS256) with a key that stays outside Lua.
---local assertion = phased.jwt { key = options.key, claims = { aud = url }, from_key = { iss = "client_email" } }
---@param what phased.jwt
---@return string
function phased.jwt(what) end

---Sends one mail.
---@class phased.smtp
---@field host string The relay.
---@field port? integer Its port. Default: 587.
---@field tls? "starttls"|"implicit"|"none" How the connection is protected; none is for a relay on this machine. Default: "starttls".
---@field user? string The login; with password.
---@field password? phased.Secret The password; with user.
---@field from string Who sends it.
---@field to string|string[] Who gets it.
---@field subject string One line.
---@field body string Plain text.
---@field timeout? string The limit of the whole exchange. Default: "30s".

---Sends one mail.
---phased.smtp { host = "localhost", from = "phased@example.com", to = "ops@example.com", subject = "...", body = "..." }
---@param what phased.smtp
function phased.smtp(what) end

---One press of the button; its steps run on this server, in the run's checkout, as the project's own user.
---@class phased.Run
---@field id string The run's id.
---@field project string The project's name.
---@field release phased.Release What is tested and deployed.
---@field reason? string Why it was started, in the words of whoever did.
---@field dir string The checkout.
local Run = {}

---Runs text under /bin/sh -eu: the first failing line fails the step.
---@class phased.step.sh
---@field [1] string The shell text; values go in through env, never by concatenation.
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "10m" on hosts, "30m" in stages.
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".
---@field cwd? string The directory to run in; the checkout, or the user's home on a host.
---@field env? table<string, string|integer|phased.Secret> Further environment variables: the way to pass values and secrets in. Each below 128 KiB, as Linux has it; what is larger goes by stdin or write.
---@field stdin? string|phased.Secret Its standard input; empty when absent.
---@field user? string Run it as this user, by sudo -n.
---@field check? boolean false: a failure is returned, not raised. Default: true.
---@field reports? string|string[] JUnit reports it writes, as patterns below the checkout.
---@field shell? "sh"|"bash" bash: run it under bash -euo pipefail. Default: "sh".

---Runs text under /bin/sh -eu: the first failing line fails the step.
---host:sh { 'cd /srv/shop && git checkout --detach "$PHASED_REVISION"', timeout = "2m" }
---@param what string|phased.step.sh
---@return phased.Result
function Run:sh(what) end

---Runs a program with arguments, without a shell.
---@class phased.step.exec
---@field [integer] string|integer The program and its arguments.
---@field argv? (string|integer)[] The program and its arguments.
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "10m" on hosts, "30m" in stages.
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".
---@field cwd? string The directory to run in; the checkout, or the user's home on a host.
---@field env? table<string, string|integer|phased.Secret> Further environment variables: the way to pass values and secrets in. Each below 128 KiB, as Linux has it; what is larger goes by stdin or write.
---@field stdin? string|phased.Secret Its standard input; empty when absent.
---@field user? string Run it as this user, by sudo -n.
---@field check? boolean false: a failure is returned, not raised. Default: true.
---@field reports? string|string[] JUnit reports it writes, as patterns below the checkout.

---Runs a program with arguments, without a shell.
---run:exec { "npm", "test", timeout = "10m" }
---@param what phased.step.exec
---@return phased.Result
function Run:exec(what) end

---Stores a directory tree, a file or a value with the release, under a name; in test stages only. Every environment, re-run and rollback uses what the first green run has stored.
---@class phased.step.artifact
---@field [1] string How it is called: release.artifacts.app.
---@field path? string The directory or file, relative to the run's checkout. Of a tree modes and links are kept, times and owners are not; setuid is dropped, links are never followed.
---@field exclude? string[] What of the directory is left out, as patterns relative to it: ".git", "**/*.map".
---@field value? string The value, such as an image's digest.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "30m".
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".

---Stores a directory tree, a file or a value with the release, under a name; in test stages only. Every environment, re-run and rollback uses what the first green run has stored.
---run:artifact { "app", path = ".", exclude = { ".git", "reports" } }
---@param what string|phased.step.artifact
---@return {name: string, kind: string, sha256: string?, size: integer?, value: string?}
function Run:artifact(what) end

---Brings a stored artifact into the run's checkout and returns its path: a tree is a directory there.
---@class phased.step.artifact_path
---@field [1] string Which.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "10m" on hosts, "30m" in stages.

---Brings a stored artifact into the run's checkout and returns its path: a tree is a directory there.
---run:exec { run:artifact_path "app.deb" }
---@param what string|phased.step.artifact_path
---@return string
function Run:artifact_path(what) end

---Writes a file by temporary file and rename.
---@class phased.step.write
---@field [1] string The file.
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "10m".
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".
---@field content? string|phased.Secret What is to be in it.
---@field env? table<string, string|integer|phased.Secret> What is to be in it, as lines of NAME=value that systemd and sh can read.
---@field mode? string Its mode, in octal; a new file has 0644 less the umask.
---@field owner? string Its owner; needs user = "root".
---@field user? string Write it as this user, by sudo -n.

---Writes a file by temporary file and rename.
---host:write { "/etc/shop/env", mode = "0600", owner = "shop", user = "root", env = { PORT = 8080 } }
---@param what string|phased.step.write
---@return {changed: boolean}
function Run:write(what) end

---Makes one HTTP request; redirects are not followed.
---@class phased.step.http
---@field [1] string ":8080/path" is the host's own loopback, asked through its SSH session; a full URL is asked from here.
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "30s".
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".
---@field method? "GET"|"HEAD"|"POST"|"PUT"|"PATCH"|"DELETE" The method. Default: "GET".
---@field headers? table<string, string|integer|phased.Secret> Further headers.
---@field body? string|phased.Secret The body as it is.
---@field json? any The body as data, sent as JSON.
---@field status? integer|integer[] The statuses that are no failure. Default: 200 to 299.
---@field check? boolean false: another status is returned, not raised. Default: true.
---@field idempotent? boolean Whether it may be sent again when nobody can tell whether it arrived. Default: true but for POST and PATCH.

---Makes one HTTP request; redirects are not followed.
---host:http { ":8080/cache", method = "DELETE" }
---@param what string|phased.step.http
---@return phased.Answer
function Run:http(what) end

---Asks until the answer is good or the time is up.
---@class phased.step.wait
---@field [1] string Until this answers with a good status.
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "5m".
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".
---@field tcp? string Until something listens there.
---@field command? string Until this shell text ends with 0.
---@field status? integer|integer[] The good statuses. Default: 200 to 299.
---@field interval? string Between looks. Default: "1s".

---Asks until the answer is good or the time is up.
---host:wait { ":8080/healthz", timeout = "1m" }
---@param what string|phased.step.wait
function Run:wait(what) end

---Waits a while; the wait survives a restart of the daemon.
---@class phased.step.sleep
---@field [1] string How long.
---@field name? string Shown instead of the verb and its number.

---Waits a while; the wait survives a restart of the daemon.
---run:sleep "10s"
---@param what string|phased.step.sleep
function Run:sleep(what) end

---The time, recorded: the same on replay.
---@class phased.step.now
---@field name? string Shown instead of the verb and its number.

---The time, recorded: the same on replay.
---local started = run:now()
---@param what? phased.step.now
---@return {ms: integer, text: string}
function Run:now(what) end

---Adds a line to the run's log.
---run:log "assets are built"
---@param what string|integer
function Run:log(what) end

---Ends the call as failed, with these words as its cause.
---run:fail "the schema is not the one we expect"
---@param what string|integer
function Run:fail(what) end

---Runs functions side by side, waits for all of them, then raises the first error by name.
---run:parallel { lint = function() run:sh "npm run lint" end, unit = function() run:sh "npm test" end }
---@param what table<string, fun()>
---@return table<string, any>
function Run:parallel(what) end

---Leaves a function that is called should this call fail or be stopped; the newest first, and all of them, also when one fails.
---host:undo("traffic", function() host:sh "lb enable" end)
---@param what 
function Run:undo(what) end

---A deploy target; its steps run there, as the user of ssh.user.
---@class phased.Host
---@field id string Its identity, by its provider.
---@field name string What people call it.
---@field address string Where its sshd listens.
---@field labels table<string, string> Free facts of the project or its discovery.
---@field zone? string Its failure domain.
local Host = {}

---Runs text under /bin/sh -eu: the first failing line fails the step.
---host:sh { 'cd /srv/shop && git checkout --detach "$PHASED_REVISION"', timeout = "2m" }
---@param what string|phased.step.sh
---@return phased.Result
function Host:sh(what) end

---Runs a program with arguments, without a shell.
---run:exec { "npm", "test", timeout = "10m" }
---@param what phased.step.exec
---@return phased.Result
function Host:exec(what) end

---Copies an artifact, or a file of the run's checkout, to the host; skipped when the host has these very bytes, and resumed where a cut connection left it.
---@class phased.step.upload
---@field [1] phased.Artifact|string The artifact, as in release.artifacts.app, or the file, relative to the run's checkout.
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "10m".
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".
---@field to string Where to on the host; its directory must exist.
---@field unpack? boolean The artifact is a tree (or the file a tar archive): to becomes a directory with its content, in place of what was there. Without it a tree arrives as its tar archive. Default: false.
---@field mode? string Its mode, in octal; of an unpacked tree that of its top.
---@field owner? string Its owner, of an unpacked tree that of all in it; needs user = "root".
---@field user? string Install it as this user, by sudo -n.

---Copies an artifact, or a file of the run's checkout, to the host; skipped when the host has these very bytes, and resumed where a cut connection left it.
---host:upload { release.artifacts.app, to = "/srv/shop/next", unpack = true }
---@param what phased.step.upload
---@return {changed: boolean}
function Host:upload(what) end

---Copies a file of the host into the run's checkout.
---@class phased.step.download
---@field [1] string The file on the host.
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "10m".
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".
---@field to string Where to, relative to the run's checkout.
---@field user? string Read it as this user, by sudo -n.

---Copies a file of the host into the run's checkout.
---host:download { "/var/log/shop.log", to = "shop.log" }
---@param what phased.step.download
---@return {size: integer, sha256: string}
function Host:download(what) end

---Writes a file by temporary file and rename.
---host:write { "/etc/shop/env", mode = "0600", owner = "shop", user = "root", env = { PORT = 8080 } }
---@param what string|phased.step.write
---@return {changed: boolean}
function Host:write(what) end

---Makes one HTTP request; redirects are not followed.
---host:http { ":8080/cache", method = "DELETE" }
---@param what string|phased.step.http
---@return phased.Answer
function Host:http(what) end

---Asks until the answer is good or the time is up.
---host:wait { ":8080/healthz", timeout = "1m" }
---@param what string|phased.step.wait
function Host:wait(what) end

---Waits a while; the wait survives a restart of the daemon.
---run:sleep "10s"
---@param what string|phased.step.sleep
function Host:sleep(what) end

---The time, recorded: the same on replay.
---local started = run:now()
---@param what? phased.step.now
---@return {ms: integer, text: string}
function Host:now(what) end

---Acts on a systemd unit by exactly sudo -n systemctl ACTION UNIT.service, so that one line of sudoers is enough.
---@param unit string
---@return phased.Service
function Host:service(unit) end

---Sends the release to the host's own daemon by a signed signal and follows the run that this one makes of it, until it has ended; it fails if that did not succeed. What deploy is with transport = "signal" when it is absent.
---@class phased.step.signal
---@field name? string Shown instead of the verb and its number.
---@field timeout? string The limit of one attempt; reaching it is a failure with the code timeout. Default: "30m".
---@field retries? integer Further attempts after a failure. Default: 0.
---@field backoff? string The wait before the next attempt; doubles each time, at most 5m. Default: "1s".
---@field on_unknown? "fail"|"retry"|(fun(on: phased.Run|phased.Host, failure: table): boolean?) When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails). Default: "fail".

---Sends the release to the host's own daemon by a signed signal and follows the run that this one makes of it, until it has ended; it fails if that did not succeed. What deploy is with transport = "signal" when it is absent.
---host:signal { timeout = "1h" }
---@param what? phased.step.signal
---@return {run: string, state: string}
function Host:signal(what) end

---Adds a line to the run's log.
---run:log "assets are built"
---@param what string|integer
function Host:log(what) end

---Ends the call as failed, with these words as its cause.
---run:fail "the schema is not the one we expect"
---@param what string|integer
function Host:fail(what) end

---Runs functions side by side, waits for all of them, then raises the first error by name.
---run:parallel { lint = function() run:sh "npm run lint" end, unit = function() run:sh "npm test" end }
---@param what table<string, fun()>
---@return table<string, any>
function Host:parallel(what) end

---Leaves a function that is called should this call fail or be stopped; the newest first, and all of them, also when one fails.
---host:undo("traffic", function() host:sh "lb enable" end)
---@param what 
function Host:undo(what) end

---The immutable thing that ships: the project at one commit.
---@class phased.Release
---@field id string 12 hex digits of the commit, and .2 and so on for a further build.
---@field revision string The full hash of the commit.
---@field short string The first 7 digits of it.
---@field branch? string The branch it came by.
---@field tag? string The tag it came by.
---@field author string Name and mail of the commit's author.
---@field message string The commit's message.
---@field committed_at string When, RFC 3339.
---@field previous? phased.Release What was live before.
---@field artifacts table<string, phased.Artifact> What its tests stored, by name; none while they run.

---Something that a test stage stored with the release.
---@class phased.Artifact
---@field name string What run:artifact called it.
---@field kind "tree"|"file"|"value" What it is.
---@field sha256? string Of the file, or of the tree as a tar archive.
---@field size? integer Of the same, bytes.
---@field value? string The value.

---One attempt to put a release on one environment.
---@class phased.Deployment
---@field id string The run's id and a number.
---@field run string The run's id.
---@field environment string The environment's name.
---@field release phased.Release What is deployed.
---@field previous? phased.Release What was live before.
---@field rollback_of? string The deployment that it takes back.
---@field hosts phased.Host[] The hosts.

---Hosts that are updated together.
---@class phased.Wave
---@field n integer Which, from 1.
---@field canary boolean Whether it is the canary.
---@field environment string The environment's name.
---@field release phased.Release What is deployed.
---@field hosts phased.Host[] Its hosts.

---What a command did.
---@class phased.Result
---@field stdout string Its standard output, at most the last 1 MiB.
---@field stderr string Its standard error, at most the last 1 MiB.
---@field code integer Its exit code.
---@field duration_ms integer How long it ran.
---@field truncated boolean Whether there was more output than is shown here.

---What an HTTP request brought.
---@class phased.Answer
---@field status integer 100 to 599.
---@field headers table<string, string> By lower-case names.
---@field body string At most 1 MiB.
---@field truncated boolean Whether there was more.
---@field duration_ms integer How long it took.

---A systemd unit of a host; each of its methods (restart, start, stop, status) takes the step options in a table.
---@class phased.Service
---@field restart fun(self: phased.Service, options?: table): phased.Result Restarts it.
---@field start fun(self: phased.Service, options?: table): phased.Result Starts it.
---@field stop fun(self: phased.Service, options?: table): phased.Result Stops it.
---@field status fun(self: phased.Service, options?: table): phased.Result Asks for it; a unit that is not active is no error.

---What DNS says: an address, or a service.
---@class phased.Record
---@field address? string Of an A or AAAA record.
---@field target? string Of an SRV record: the name of the host.
---@field port? integer Of an SRV record.
---@field priority? integer Of an SRV record.
---@field weight? integer Of an SRV record.

---An instance of EC2; what it does not have is absent.
---@class phased.Instance
---@field id string i-...
---@field region string Where it was found.
---@field account? string Whose it is.
---@field state string pending, running, shutting-down, terminated, stopping or stopped.
---@field state_reason? string Why it is in that state.
---@field private_ip? string Its private IPv4 address.
---@field public_ip? string Its public IPv4 address.
---@field ipv6? string Its first IPv6 address.
---@field private_dns? string The name of its private address.
---@field public_dns? string The name of its public address.
---@field zone? string Its availability zone.
---@field type? string Its type.
---@field image? string Its image.
---@field vpc? string Its VPC.
---@field subnet? string Its subnet.
---@field key? string The name of the key pair it was launched with.
---@field autoscaling_group? string Its Auto Scaling group.
---@field launched_at? string When, RFC 3339.
---@field tags table<string, string> Its tags.

---What a discovery's hosts gets beside its options: whose hosts are asked for.
---@class phased.Asking
---@field project string The project's name.
---@field environment string The environment's name.
---@field known string[] The ids of the running hosts of its last good answer: what became of those that are missing now may be told.
---@field host_keys table<string, string|string[]> The host_keys that its last good answer gave, by id: what was found out with some trouble need not be found out again.

---What a probe's measure gets: whose alarm it is.
---@class phased.About
---@field project string The project's name.
---@field environment string The environment's name.
---@field alarm string The alarm's name.
---@field group string canary: the hosts with the new release; baseline: those it is compared with.
---@field hosts phased.Host[] The hosts of that group.

---A measurement with words about it.
---@class phased.Measured
---@field value? number The value; absent where there is no data.
---@field message? string What people should know of it, one line.

---What an alert's send gets.
---@class phased.Message
---@field event string failed, rolled_back, rollback_failed, halted, damaged, stopped, recovered or succeeded.
---@field project string The project's name.
---@field run? string The run's id.
---@field state? string The run's state.
---@field title string One line that says it all.
---@field text string The sentences a person needs.
---@field release? string The release's id.
---@field revision? string The full hash of the commit.
---@field author? string Name and mail of the commit's author.
---@field environment? string Where.
---@field stage? string Which stage of tests.
---@field host? string Which host.
---@field cause? {code: string, message: string} Why.
---@field output? string The last lines of output.
---@field command? string What to type to look further.

